package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDefaultsAreValid(t *testing.T) {
	c := Default()
	require.NoError(t, c.fill())
	require.NoError(t, c.Validate())
}

func TestMistakesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		`nmae = "x"`:                                                     "unknown setting nmae",
		`name = "UPPER"`:                                                 "setting name",
		`data = "relative"`:                                              "setting data",
		`advertise = "0.0.0.0"`:                                          "setting advertise",
		"[ports]\ngossip = 7947":                                         "7947",
		"[ports]\nbulk = 0":                                              "setting ports.bulk",
		"[network]\npool = \"10.0.0.0/30\"":                              "setting network.pool",
		"[transport]\nplugins = [\"../x\"]":                              "setting transport.plugins",
		"[transport]\nplugins = [\"a\", \"a\"]":                          "there twice",
		"[transport]\nplugin_dir = \"x\"":                                "setting transport.plugin_dir",
		"[transport.settings.a]\nx = \"y\"":                              "has no \"a\"",
		"[transfer]\nupload = \"fast\"":                                  "setting transfer.upload",
		"[transfer]\ndownload = \"8kbit\"":                               "at least 64kbit",
		"[dns]\nlisten = [\"53\"]":                                       "setting dns",
		"[registry]\ninsecure = [\"http://a\"]":                          "setting registry.insecure",
		"[registry.mirrors]\na = [\"ftp://b\"]":                          "setting registry.mirrors",
		"[registry.mirrors]\na = [\"b/c\"]":                              "setting registry.mirrors",
		"[log]\nlevel = \"loud\"":                                        "setting log.level",
		"[distribution]\nlisten = \"localhost:5000\"":                    "setting distribution.listen",
		"[distribution]\nlisten = \"0.0.0.0:5000\"":                      "only clients with a certificate",
		"[distribution]\ncert = \"/c.pem\"":                              "all three or none",
		"[distribution]\ncert = \"c\"\nkey = \"/k\"\nclient_ca = \"/a\"": "setting distribution.cert",
		`run = "/` + strings.Repeat("x", 90) + `"`:                       "setting run",
		`name = `: "line 1",
	} {
		path := filepath.Join(t.TempDir(), "agent.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := Load(path)
		require.ErrorContains(t, err, want, text)
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	require.ErrorContains(t, err, "none.toml")
}

func FuzzParse(f *testing.F) {
	f.Add("name = \"a\"\n[tags]\nzone = \"b\"")
	f.Add("[ports]\ngossip = -1")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err == nil {
			_ = c.Validate() // must not panic whatever was read
		}
	})
}

func TestDocumentedDefaults(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/agent.toml")
	require.NoError(t, err)
	c, err := Parse(string(raw))
	require.NoError(t, err)
	c.Tags = nil // an empty section and none are the same
	require.Equal(t, Default(), c)
}
