package lb

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
)

// HAProxy is the template that is shipped.
//
//go:embed haproxy.cfg.tmpl
var HAProxy string

// maxText bounds what a template may write, in bytes.
const maxText = 64 << 20

// Template renders models.
type Template struct{ t *template.Template }

// ParseTemplate reads a template. The name, usually its file's, is what errors
// begin with, together with the line.
func ParseTemplate(name, text string, params map[string]string) (*Template, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"param": func(name, fallback string) string {
			if v, ok := params[name]; ok {
				return v
			}
			return fallback
		},
		"word":  word,
		"quote": quote,
		"join":  func(separator string, list []string) string { return strings.Join(list, separator) },
	}).Parse(text)
	if err != nil {
		return nil, err // "template: NAME:LINE: …"
	}
	return &Template{t}, nil
}

// Render makes the text of a file.
func (t *Template) Render(m Model) ([]byte, error) {
	var b limited
	if err := t.t.Execute(&b, m); err != nil {
		return nil, err // "template: NAME:LINE:COLUMN: …"
	}
	return b.Bytes(), nil
}

// limited stops a template that never ends.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxText {
		return 0, fmt.Errorf("writes more than %d bytes", maxText)
	}
	return l.Buffer.Write(p)
}

func word(v any) (string, error) {
	s := fmt.Sprint(v)
	if !isWord(s) {
		return "", fmt.Errorf("%q is not a plain word", s)
	}
	return s, nil
}

func quote(v any) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(printable(fmt.Sprint(v))) + `"`
}
