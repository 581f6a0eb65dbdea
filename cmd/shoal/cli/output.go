package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// printer writes listings: a table for people, or JSON for programs.
type printer struct {
	out  io.Writer
	json bool
}

// list writes rows under a header, or v as JSON.
func (p printer) list(v any, header string, rows func(row func(cells ...any))) error {
	if p.json {
		return p.value(v)
	}
	w := tabwriter.NewWriter(p.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, header)
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	})
	return w.Flush()
}

// value writes v as JSON, indented.
func (p printer) value(v any) error {
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
