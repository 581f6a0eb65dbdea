package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/shoal-engine/shoal/"

// mayImport draws the arrows between the top folders; each may import itself.
var mayImport = map[string][]string{
	"api":         {},
	"scheduler":   {"api"},
	"transfer":    {"api"},
	"node":        {"api", "transfer"},
	"cluster":     {"api", "scheduler"},
	"discovery":   {"api", "cluster"}, // and of cluster only the catalog's read side
	"cmd":         {"api", "scheduler", "transfer", "node", "cluster", "discovery", "integration"},
	"integration": {"api", "scheduler", "transfer", "node", "cluster", "discovery", "cmd"},
}

// exceptions are single arrows that tests need: whole clusters in memory stand on
// the in-memory twin of the wire.
var exceptions = map[string]string{"cluster/clustertest": "transfer/p2p/memory"}

// onlyIn names the one folder that may import a library.
var onlyIn = map[string][]string{
	"github.com/opencontainers/runc":  {"node/runtime/libcontainer", "node/supervisor"},
	"github.com/libp2p":               {"transfer/p2p"},
	"github.com/hashicorp/raft":       {"cluster/catalog"},
	"github.com/hashicorp/memberlist": {"cluster/membership"},
}

type goPackage struct {
	ImportPath, Doc, Dir string
	GoFiles, Imports     []string
	TestImports          []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Doc,Dir,GoFiles,Imports,TestImports", module+"...").Output()
	require.NoError(t, err)
	var all []goPackage
	d := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	require.Greater(t, len(all), 20)
	return all
}

func TestImportArrows(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		top, _, _ := strings.Cut(from, "/")
		allowed, known := mayImport[top]
		require.True(t, known, "%s: no such top folder is planned", from)
		for _, i := range p.Imports {
			if to, ours := strings.CutPrefix(i, module); ours {
				toTop, _, _ := strings.Cut(to, "/")
				require.True(t, toTop == top || slices.Contains(allowed, toTop) || exceptions[from] == to, "%s must not import %s", from, to)
				if top == "discovery" && toTop == "cluster" {
					require.Equal(t, "cluster/catalog", to, "%s sees the catalog only", from)
				}
				continue
			}
			for library, folders := range onlyIn {
				if i == library || strings.HasPrefix(i, library+"/") {
					require.True(t, slices.ContainsFunc(folders, func(f string) bool { return from == f || strings.HasPrefix(from, f+"/") }),
						"%s must not import %s: only %v may", from, i, folders)
				}
			}
		}
	}
}

// TestOneSentenceAPackage wants every package to say what it is, in one place.
func TestOneSentenceAPackage(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		require.NotEmpty(t, p.Doc, "%s has no package comment", p.ImportPath)
		commented := 0
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			require.NoError(t, err)
			if file.Doc != nil {
				commented++
			}
		}
		require.Equal(t, 1, commented, "%s has its package comment in several files", p.ImportPath)
	}
}

var waits = regexp.MustCompile(`\btime\.Sleep\(`)

// TestNobodySleeps keeps waiting on conditions, in products and tests alike.
func TestNobodySleeps(t *testing.T) {
	root := filepath.Join("..", "..")
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "layout_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(raw), "\n") {
			// Inside a synctest bubble time is fake, and sleeping is how it passes.
			if waits.MatchString(line) && !strings.Contains(line, "fake time") {
				t.Errorf("%s:%d: %s", path, i+1, strings.TrimSpace(line))
			}
		}
		return nil
	}))
}
