package server

import (
	"bytes"
	"encoding/json"
	"html/template"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// document is the OpenAPI 3 description of the routes. It can't fail: all it is
// made of is in this package.
func document(routes []route, programVersion string) []byte {
	s := schemas{named: map[string]any{}}
	paths := map[string]map[string]any{}
	for _, r := range routes {
		path := strings.Replace(r.path, "...}", "}", 1)
		if paths[path] == nil {
			paths[path] = map[string]any{}
		}
		paths[path][strings.ToLower(r.method)] = s.operation(r)
	}
	s.named["ErrorResponse"] = map[string]any{
		"type": "object", "required": []string{"message"},
		"properties": map[string]any{"message": map[string]any{"type": "string"}},
	}
	b, err := json.MarshalIndent(map[string]any{
		"openapi": "3.0.3",
		"info": map[string]any{
			"title": "Shoal's Docker API", "version": newest.String(), "x-shoal-version": orDev(programVersion),
			"description": "Every path may be preceded by /v{version}, from /v" + oldest.String() + " on.",
		},
		"paths":      paths,
		"components": map[string]any{"schemas": s.named},
	}, "", " ")
	if err != nil {
		return []byte(strconv.Quote(err.Error()))
	}
	return b
}

// schemas collects what the types of bodies and answers look like.
type schemas struct{ named map[string]any }

func (s schemas) operation(r route) map[string]any {
	params := []any{}
	if _, rest, ok := strings.Cut(r.path, "{"); ok {
		name, _, _ := strings.Cut(rest, "}")
		params = append(params, map[string]any{
			"name": strings.TrimSuffix(name, "..."), "in": "path", "required": true,
			"schema": map[string]any{"type": "string"},
		})
	}
	for _, p := range r.query {
		params = append(params, map[string]any{
			"name": p.name, "in": "query", "description": p.doc, "schema": map[string]any{"type": p.kind},
		})
	}
	op := map[string]any{
		"operationId": r.id, "summary": r.doc, "parameters": params,
		"responses": map[string]any{
			strconv.Itoa(r.status): s.response(r.answer),
			"default": map[string]any{"description": "An error", "content": map[string]any{
				"application/json": map[string]any{"schema": ref("ErrorResponse")},
			}},
		},
	}
	if r.body != nil {
		op["requestBody"] = map[string]any{"content": s.content(r.body)}
	}
	if r.min != (version{}) {
		op["x-min-api-version"] = r.min.String()
	}
	return op
}

func (s schemas) response(answer any) map[string]any {
	if answer == nil {
		return map[string]any{"description": "Done"}
	}
	return map[string]any{"description": "Success", "content": s.content(answer)}
}

func (s schemas) content(v any) map[string]any {
	if m, ok := v.(mediaType); ok {
		return map[string]any{string(m): map[string]any{"schema": map[string]any{"type": "string", "format": "binary"}}}
	}
	return map[string]any{"application/json": map[string]any{"schema": s.of(reflect.TypeOf(v))}}
}

func ref(name string) map[string]any { return map[string]any{"$ref": "#/components/schemas/" + name} }

// of is the schema of a type as encoding/json writes it.
func (s schemas) of(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix]():
		return map[string]any{"type": "string"}
	}
	if t.Implements(textMarshaler) || reflect.PointerTo(t).Implements(textMarshaler) {
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "format": "byte"}
		}
		return map[string]any{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		return s.object(t)
	case reflect.Interface:
		return map[string]any{}
	}
	return map[string]any{"type": "integer"}
}

var textMarshaler = reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()

func (s schemas) object(t reflect.Type) map[string]any {
	name := t.Name()
	if pkg := t.PkgPath(); name != "" {
		name = pkg[strings.LastIndexByte(pkg, '/')+1:] + "." + name
		if _, known := s.named[name]; known {
			return ref(name)
		}
		s.named[name] = nil // types may contain themselves
	}
	properties := map[string]any{}
	s.fields(t, properties)
	object := map[string]any{"type": "object", "properties": properties}
	if name == "" {
		return object
	}
	s.named[name] = object
	return ref(name)
}

func (s schemas) fields(t reflect.Type, into map[string]any) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "" && inner.Kind() == reflect.Struct:
			s.fields(inner, into)
		case name == "":
			into[f.Name] = s.of(f.Type)
		default:
			into[name] = s.of(f.Type)
		}
	}
}

const docsText = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Shoal API {{.Newest}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code{background:#8882;padding:.1em .3em;border-radius:3px}td{vertical-align:top;padding:.2em 1em .2em 0}
summary{cursor:pointer}:root{color-scheme:light dark}</style>
<h1>Shoal {{.Program}}: Docker's API {{.Newest}}</h1>
<p>Docker's own clients speak this API, from version {{.Oldest}} on; every path may be preceded by
<code>/v{version}</code>. The same for programs: <a href="openapi.json">openapi.json</a>.
Errors are <code>{"message":"…"}</code>.</p>
{{range .Routes}}<details><summary><code>{{.Method}} {{.Path}}</code> {{.Doc}}</summary><table>
{{range .Query}}<tr><td><code>{{.Name}}</code><td>{{.Kind}}<td>{{.Doc}}{{end}}
<tr><td>answer<td colspan="2">{{.Status}}</table></details>
{{end}}</html>`

// docsPage is the table for people.
func docsPage(routes []route, programVersion string) []byte {
	type row struct{ Name, Kind, Doc string }
	type entry struct {
		Method, Path, Doc string
		Status            int
		Query             []row
	}
	var entries []entry
	for _, r := range routes {
		e := entry{r.method, strings.Replace(r.path, "...}", "}", 1), r.doc, r.status, nil}
		for _, p := range r.query {
			e.Query = append(e.Query, row{p.name, p.kind, p.doc})
		}
		entries = append(entries, e)
	}
	var b bytes.Buffer
	err := template.Must(template.New("docs").Parse(docsText)).Execute(&b, map[string]any{
		"Program": orDev(programVersion), "Newest": newest.String(), "Oldest": oldest.String(), "Routes": entries,
	})
	if err != nil {
		return []byte(template.HTMLEscapeString(err.Error()))
	}
	return b.Bytes()
}
