package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseRate reads a link speed as tc writes it (100mbit, 1gbit, 500kbit, 12mbps
// with bps meaning bytes) and returns bits a second; empty and "0" are unshaped.
func ParseRate(s string) (uint64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	if t == "" || t == "0" || t == "none" {
		return 0, nil
	}
	units := []struct {
		suffix string
		bits   float64
	}{
		{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1},
		{"kbps", 8e3}, {"mbps", 8e6}, {"gbps", 8e9}, {"bps", 8},
	}
	for _, u := range units {
		num, ok := strings.CutSuffix(t, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(num, 64)
		if err != nil || v <= 0 || v*u.bits > 1e12 || v*u.bits < 8 {
			break
		}
		return uint64(v * u.bits), nil
	}
	return 0, fmt.Errorf("rate %q: want a number with a unit, such as 200mbit or 1gbit", s)
}

// ParseGroups reads a partition, "1,2/3": groups of node numbers that still reach
// each other. Nodes not named form a group of their own.
func ParseGroups(s string, nodes int) ([][]int, error) {
	seen := make(map[int]bool)
	var groups [][]int
	for part := range strings.SplitSeq(s, "/") {
		var group []int
		for word := range strings.SplitSeq(part, ",") {
			n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(word), "node"))
			if err != nil || n < 1 || n > nodes {
				return nil, fmt.Errorf("partition %q: %q is not a node of this lab (1 to %d)", s, word, nodes)
			}
			if seen[n] {
				return nil, fmt.Errorf("partition %q: node %d is named twice", s, n)
			}
			seen[n] = true
			group = append(group, n)
		}
		groups = append(groups, group)
	}
	var rest []int
	for n := 1; n <= nodes; n++ {
		if !seen[n] {
			rest = append(rest, n)
		}
	}
	if len(rest) > 0 {
		groups = append(groups, rest)
	}
	return groups, nil
}
