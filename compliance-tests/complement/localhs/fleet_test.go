package localhs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays the homeserver when it is started with --config, as a fleet starts it: what it
// does is told by the environment variable actEnv.
const actEnv = "LOCALHS_TEST_ACT"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--config" {
		playHomeserver(os.Args[2], os.Getenv(actEnv))
		return
	}
	os.Exit(m.Run())
}

// playHomeserver answers versions on the client listener, and on the federation listener how often it
// was started on its data.
func playHomeserver(configFile, act string) {
	fmt.Println("started as", act)
	fmt.Println("GUILDHALL_LIMITS__UPLOAD_MB is", os.Getenv("GUILDHALL_LIMITS__UPLOAD_MB"))
	if act == "refuse" {
		fmt.Println("this configuration is not for me")
		os.Exit(3)
	}
	config, err := os.ReadFile(configFile)
	if err != nil {
		panic(err)
	}
	value := func(key string, nth int) string {
		found := regexp.MustCompile(`(?m)^`+key+` = "(.*)"$`).FindAllStringSubmatch(string(config), -1)
		return found[nth][1]
	}
	count := filepath.Join(value("directory", 0), "starts")
	starts, err := os.ReadFile(count)
	if err != nil && !os.IsNotExist(err) {
		panic(err)
	}
	starts = append(starts, 'I')
	if err := os.WriteFile(count, starts, 0o600); err != nil {
		panic(err)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	http.HandleFunc("/_matrix/client/versions", func(w http.ResponseWriter, r *http.Request) {
		if act == "unready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/starts", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s", starts) })
	go func() { panic(http.ListenAndServe(value("address", 0), nil)) }()
	go func() {
		panic(http.ListenAndServeTLS(value("address", 1),
			value("tls_certificate_file", 0), value("tls_key_file", 0), nil))
	}()
	<-terminated
	fmt.Println("stopping")
}

func newTestFleet(t *testing.T, act string) *Fleet {
	t.Helper()
	t.Setenv(actEnv, act)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := NewFleet(Settings{
		Binary: self, Dir: t.TempDir(), Authority: authority, ReadyAfter: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	return fleet
}

func launch(t *testing.T, fleet *Fleet, name string, options Options) *Server {
	t.Helper()
	server, err := fleet.Launch(name, options)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// askByName asks over TLS as another homeserver would: the name is checked, and the authority is the
// only one that is trusted.
func askByName(t *testing.T, fleet *Fleet, server *Server, path string) string {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(fleet.settings.Authority.PEM()) {
		t.Fatal("the authority's PEM holds no certificate")
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: pool, ServerName: server.Name()},
	}}
	response, err := client.Get(server.FederationURL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func logOf(t *testing.T, server *Server) string {
	t.Helper()
	log, err := os.ReadFile(server.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

func TestAServerIsReachedByItsNameWithACertificateOfTheAuthority(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	one, two := launch(t, fleet, "hs1", Options{}), launch(t, fleet, "hs2", Options{})
	for _, server := range []*Server{one, two} {
		if starts := askByName(t, fleet, server, "/starts"); starts != "I" {
			t.Errorf("%s says %q", server.Name(), starts)
		}
	}
	if one.ClientURL() == two.ClientURL() {
		t.Errorf("both are at %s", one.ClientURL())
	}
}

func TestAStoppedServerStartsAgainOnItsDataAtTheSameAddress(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{})
	address := server.FederationURL()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err == nil {
		t.Error("a server that does not run was stopped")
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err == nil {
		t.Error("a running server was started")
	}
	if starts := askByName(t, fleet, server, "/starts"); starts != "II" || server.FederationURL() != address {
		t.Errorf("%q at %s, was at %s", starts, server.FederationURL(), address)
	}
	if log := logOf(t, server); strings.Count(log, "started as serve") != 2 || !strings.Contains(log, "stopping") {
		t.Errorf("the log lacks a start or the soft stop: %q", log)
	}
}

func TestAKilledServerIsNotAskedFirst(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{})
	server.Kill()
	server.Kill()
	if log := logOf(t, server); strings.Contains(log, "stopping") {
		t.Errorf("it had time to say goodbye: %q", log)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
}

func TestAPausedServerAcceptsButDoesNotAnswerUntilItGoesOn(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{})
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() { asked <- askVersions(&http.Client{}, server.ClientURL()+"/_matrix/client/versions") }()
	select {
	case err := <-asked:
		t.Fatalf("a paused server answered: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := server.Unpause(); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
}

func TestAServerThatEndsAtOnceIsReportedAtOnceAndItsLogTellsWhy(t *testing.T) {
	fleet := newTestFleet(t, "refuse")
	server, err := fleet.Launch("hs1", Options{})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("got %v", err)
	}
	if log := logOf(t, server); !strings.Contains(log, "this configuration is not for me") {
		t.Errorf("the log says %q", log)
	}
	kept := t.TempDir()
	if err := fleet.KeepLogs(kept, "a/b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(kept, "a_b.hs1.log")); err != nil {
		t.Error(err)
	}
}

func TestAServerThatIsNeverReadyIsKilled(t *testing.T) {
	fleet := newTestFleet(t, "unready")
	fleet.settings.ReadyAfter = 300 * time.Millisecond
	server, err := fleet.Launch("hs1", Options{})
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Fatalf("got %v", err)
	}
	if err := server.Stop(); err == nil {
		t.Error("it still runs")
	}
}

func TestSavedDataIsWhereAnotherServerBegins(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{})
	saved := filepath.Join(t.TempDir(), "saved")
	if err := server.SaveData(saved); err == nil {
		t.Error("data of a running server was copied")
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.SaveData(saved); err != nil {
		t.Fatal(err)
	}
	other := newTestFleet(t, "serve")
	again := launch(t, other, "hs1", Options{Data: saved})
	if starts := askByName(t, other, again, "/starts"); starts != "II" {
		t.Errorf("got %q", starts)
	}
}

func TestTheConfigurationNamesTheWholeFleetAndTheRegistrations(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{Appservices: map[string]string{"bridge": "id: bridge\n"}})
	config, err := os.ReadFile(server.configFile())
	if err != nil {
		t.Fatal(err)
	}
	prefix := fleet.block.prefix
	registration := filepath.Join(server.dir, "appservice-0.yaml")
	for _, line := range []string{
		`name = "hs1"`, `"hs1" = "` + prefix + `1:8448"`, `"hs9" = "` + prefix + `9:8448"`,
		`registration_files = ["` + registration + `"]`, `shared_secret = "complement"`,
	} {
		if !strings.Contains(string(config), line+"\n") {
			t.Errorf("no line %s in\n%s", line, config)
		}
	}
	if content, err := os.ReadFile(registration); err != nil || string(content) != "id: bridge\n" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestSettingsOfTheCallerDoNotReachTheServer(t *testing.T) {
	t.Setenv("GUILDHALL_LIMITS__UPLOAD_MB", "7")
	server := launch(t, newTestFleet(t, "serve"), "hs1", Options{})
	if log := logOf(t, server); !strings.Contains(log, "GUILDHALL_LIMITS__UPLOAD_MB is \n") {
		t.Errorf("the log says %q", log)
	}
}

func TestOnlyTheNamesOfAFleetAreTakenAndEachOnce(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	launch(t, fleet, "hs1", Options{})
	for _, name := range []string{"hs1", "hs0", "hs10", "hs", "1", "other"} {
		if _, err := fleet.Launch(name, Options{}); err == nil {
			t.Errorf("%s was launched", name)
		}
	}
}

func TestClosingAFleetKillsItsServersAndRemovesWhatTheyWrote(t *testing.T) {
	fleet := newTestFleet(t, "serve")
	server := launch(t, fleet, "hs1", Options{})
	address := strings.TrimPrefix(server.ClientURL(), "http://")
	if err := fleet.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fleet.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if connection, err := net.Dial("tcp", address); err == nil {
		connection.Close()
		t.Error("the server still listens")
	}
	fleet.block.lease, _ = net.Listen("tcp", "127.0.0.1:0") // for the second Close, of the cleanup
}

func TestQuotedTextReadsBackAsTOML(t *testing.T) {
	quoted, err := tomlString("a\"b\\c\n")
	if err != nil || quoted != `"a\"b\\c\n"` {
		t.Errorf("%s, %v", quoted, err)
	}
}
