package localhs

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"text/template"
)

// SharedSecret lets the tests register administrators through `/_synapse/admin/v1/register`.
const SharedSecret = "complement"

//go:embed guildhall.toml.tmpl
var configTemplateText string

var configTemplate = template.Must(template.New("guildhall.toml").
	Option("missingkey=error").
	Funcs(template.FuncMap{"toml": tomlString}).
	Parse(configTemplateText))

// configValues is all that differs between two servers; everything else stands in the template.
type configValues struct {
	ServerName        string
	DataDir           string
	ClientAddress     string
	FederationAddress string
	CertificateFile   string
	KeyFile           string
	AuthorityFile     string
	SharedSecret      string
	Appservices       []string
	Addresses         []tableEntry
}

func renderConfig(values configValues) ([]byte, error) {
	var out bytes.Buffer
	if err := configTemplate.Execute(&out, values); err != nil {
		return nil, fmt.Errorf("writing the configuration of %s: %w", values.ServerName, err)
	}
	return out.Bytes(), nil
}

// tomlString quotes text as a TOML basic string: JSON's escapes are a subset of TOML's.
func tomlString(text string) (string, error) {
	quoted, err := json.Marshal(text)
	return string(quoted), err
}
