// Command mksupervisor builds the supervisor's own executable, with one change to libcontainer.
//
// libcontainer has libseccomp compile a container's filter again in each of its
// processes, which takes longer than all the rest of starting it. The change, made
// to a copy of the module that is used here and nowhere else, lets the compiled
// filter be taken out of the supervisor once, and put into each process as it is.
// It is the same program, made by the same code.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

const (
	module  = "github.com/opencontainers/runc"
	pkg     = "libcontainer/seccomp/patchbpf" // of the module
	command = "github.com/shoal-engine/shoal/node/supervisor/shoal-supervisor"
	tags    = "seccomp shoal_precompiled runc_nocriu netgo osusergo"
)

// added is the file that the package gets beside its own.
//
//go:embed patch/shoal_linux.go.txt
var added []byte

func main() {
	out := flag.String("o", "node/supervisor/embedded/bin/shoal-supervisor", "the `file` to build")
	static := flag.Bool("static", true, "link no shared libraries, so that hosts need not have them; needs libseccomp.a and libc.a here")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *static); err != nil {
		fmt.Fprintln(os.Stderr, "mksupervisor:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, static bool) (err error) {
	dir, err := os.MkdirTemp("", "mksupervisor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	modfile, err := makeModule(ctx, dir)
	if err != nil {
		return fmt.Errorf("change %s: %w", module, err)
	}
	ldflags := "-s -w"
	if static {
		ldflags += " -linkmode external -extldflags -static"
	}
	build := exec.CommandContext(ctx, "go", "build", "-modfile", modfile, "-tags", tags, "-trimpath",
		"-ldflags", ldflags, "-o", out, command)
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		if static {
			return fmt.Errorf("build (-static=false needs fewer libraries): %w", err)
		}
		return fmt.Errorf("build: %w", err)
	}
	return nil
}

// makeModule copies the module, changes the copy, and gives a go.mod that has the
// copy in the module's place.
func makeModule(ctx context.Context, dir string) (modfile string, err error) {
	where, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find it: %w", err)
	}
	gomod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find go.mod: %w", err)
	}
	changed := filepath.Join(dir, "module")
	if err := os.CopyFS(changed, os.DirFS(strings.TrimSpace(string(where)))); err != nil {
		return "", err
	}
	if err := change(filepath.Join(changed, pkg)); err != nil {
		return "", err
	}
	original := strings.TrimSpace(string(gomod))
	mod, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	sum, err := os.ReadFile(strings.TrimSuffix(original, ".mod") + ".sum")
	if err != nil {
		return "", err
	}
	mod = fmt.Appendf(mod, "\nreplace %s => %s\n", module, changed)
	modfile = filepath.Join(dir, "go.mod")
	return modfile, errors.Join(os.WriteFile(modfile, mod, 0o600), os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o600))
}

// change makes the change in a package's directory.
func change(dir string) error {
	path := filepath.Join(dir, "enosys_linux.go")
	code, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if code, err = rename(code); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// Copied files may have come without the right to write them.
	return errors.Join(os.Remove(path), os.WriteFile(path, code, 0o600),
		os.WriteFile(filepath.Join(dir, "shoal_linux.go"), added, 0o600))
}

// rename makes room for our PatchAndLoad, which calls theirs.
func rename(code []byte) ([]byte, error) {
	const theirs = "\nfunc PatchAndLoad("
	if n := bytes.Count(code, []byte(theirs)); n != 1 {
		return nil, fmt.Errorf("%d functions are named PatchAndLoad; did a new version change?", n)
	}
	return bytes.Replace(code, []byte(theirs), []byte("\nfunc patchAndLoad("), 1), nil
}
