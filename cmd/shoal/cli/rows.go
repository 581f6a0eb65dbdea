package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// isTerminal says whether somebody may be looking.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// liveRows are lines of a terminal that change in place, one a name.
type liveRows struct {
	out   io.Writer
	names []string
}

// show writes a row anew, or a new one below the others.
func (l *liveRows) show(name, text string) {
	i := slices.Index(l.names, name)
	if i < 0 {
		i = len(l.names)
		l.names = append(l.names, name)
		fmt.Fprintln(l.out)
	}
	up := len(l.names) - i
	fmt.Fprintf(l.out, "\x1b[%dA\r\x1b[2K%s\x1b[%dB\r", up, fit(plain(fmt.Sprintf("%-12s  %s", name, text)), width(l.out)), up)
}

// plain takes away what would move the cursor: texts come from other hosts.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// fit keeps a row on one line: one that wrapped could not be written over.
func fit(s string, width int) string {
	if r := []rune(s); width > 0 && len(r) >= width {
		return string(r[:width-1])
	}
	return s
}

// width is a terminal's, in columns; 0 if it doesn't say.
func width(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(w.Col)
}

// peersText says who sent how much, the most first.
func peersText(peers map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(peers), func(a, b string) int {
		if peers[a] != peers[b] {
			return int(min(1, max(-1, peers[b]-peers[a])))
		}
		return strings.Compare(a, b)
	})
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = n + " " + units.HumanSize(float64(peers[n]))
	}
	return strings.Join(words, ", ")
}

// rateWindow is the time that a rate is the mean of: long enough not to flicker.
const rateWindow = 2 * time.Second

// rates are how fast nodes get on, by name.
type rates map[string][]sample

// sample is how much of a job was done at a moment.
type sample struct {
	at   time.Time
	done int64
}

// of is how many bytes a second came to a node lately; 0 if that can't be told yet. For
// a job that is done it is the mean of all of it.
func (r rates) of(node string, p api.Progress, now time.Time) float64 {
	if p.Progress == nil {
		return 0
	}
	all := append(r[node], sample{now, p.Progress.Current})
	from := all[0]
	if !detailOf(p).Final {
		// The oldest stays for the mean; of the others those outside of the window go.
		for len(all) > 2 && now.Sub(all[1].at) > rateWindow {
			all = slices.Delete(all, 1, 2)
		}
		if len(all) > 2 {
			from = all[1]
		}
	}
	r[node] = all
	took := now.Sub(from.at).Seconds()
	if took <= 0 || p.Progress.Current <= from.done {
		return 0
	}
	return float64(p.Progress.Current-from.done) / took
}
