package localhs

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"
)

// The configuration template against the real server, which refuses keys that it does not know.
func TestTheServerNamedByTheEnvironmentStartsStopsAndKeepsItsKeys(t *testing.T) {
	binary := os.Getenv("GUILDHALL_BIN")
	if binary == "" {
		t.Skip("GUILDHALL_BIN is not set")
	}
	fleet := newTestFleet(t, "")
	fleet.settings.Binary, fleet.settings.ReadyAfter = binary, 30*time.Second
	server, err := fleet.Launch("hs1", Options{})
	if err != nil {
		if server != nil {
			t.Log(logOf(t, server))
		}
		t.Fatal(err)
	}
	keys := func() map[string]any {
		var answer struct {
			ServerName string         `json:"server_name"`
			VerifyKeys map[string]any `json:"verify_keys"`
		}
		body := askByName(t, fleet, server, "/_matrix/key/v2/server")
		if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.ServerName != "hs1" || len(answer.VerifyKeys) == 0 {
			t.Fatalf("%v: %s", err, body)
		}
		return answer.VerifyKeys
	}
	before := keys()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if after := keys(); !reflect.DeepEqual(after, before) {
		t.Errorf("keys were %v and are %v", before, after)
	}
}
