package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// plot draws every figure that has a peer as a pair of bars, each pair scaled to
// its larger one.
func plot(figures []figure, path string) error {
	const width, left, bar, gap = 860, 420, 14, 14
	var rows []figure
	for _, f := range figures {
		if f.Peer > 0 && f.Shoal > 0 {
			rows = append(rows, f)
		}
	}
	height := 40 + len(rows)*(2*bar+gap)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&s, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&s, `<text x="%d" y="20"><tspan fill="#0b7285">■ Shoal</tspan>  <tspan fill="#adb5bd">■ peer</tspan></text>`+"\n", left)
	for i, f := range rows {
		y := 32 + i*(2*bar+gap)
		scale := float64(width-left-120) / max(f.Shoal, f.Peer)
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-10, y+bar+4, html.EscapeString(clip(f.Name, 62)))
		for k, v := range []struct {
			value float64
			fill  string
		}{{f.Shoal, "#0b7285"}, {f.Peer, "#adb5bd"}} {
			top := y + k*bar
			fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, top, max(1, v.value*scale), bar-2, v.fill)
			fmt.Fprintf(&s, `<text x="%.1f" y="%d" font-size="10">%s %s</text>`+"\n", float64(left)+v.value*scale+4, top+bar-4, number(v.value), html.EscapeString(f.Unit))
		}
	}
	s.WriteString("</svg>\n")
	return os.WriteFile(path, []byte(s.String()), 0o644)
}

// clip shortens a name to what fits beside the bars.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
