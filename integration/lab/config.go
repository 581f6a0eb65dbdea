package lab

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// agentConfig is node n's configuration file.
func agentConfig(l *Lab, n int, tags map[string]string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\ndata = %q\nrun = %q\nadvertise = %q\n", fmt.Sprintf("node%d", n), l.dataDir(n), l.nodeDir(n), Address(n))
	// Nothing outside answers from inside a lab; asking would only take time.
	b.WriteString("\n[dns]\nlisten = [\"127.0.0.1:53\"]\nupstream = []\n")
	// A registry in a lab has no certificate.
	var hosts []string
	for i := 1; i <= l.state.Nodes; i++ {
		hosts = append(hosts, strconv.Quote(Address(i).String()))
	}
	fmt.Fprintf(&b, "\n[registry]\ninsecure = [%s]\n", strings.Join(hosts, ", "))
	if len(tags) > 0 {
		b.WriteString("\n[tags]\n")
		for _, k := range slices.Sorted(maps.Keys(tags)) {
			fmt.Fprintf(&b, "%q = %q\n", k, tags[k])
		}
	}
	return []byte(b.String())
}
