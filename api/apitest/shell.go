package apitest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// process runs the few commands the suite uses.
type process struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            map[string]string
	files          map[string]int64 // modes of what the image has, by absolute path
}

// programs are the commands that are built in, wherever the image has them.
var programs = []string{"sh", "echo", "cat", "sleep", "true", "false"}

// find fails as an engine does for a command that can't be run.
func (p *process) find(name string) error {
	if strings.Contains(name, "/") {
		return p.findPath(name)
	}
	if slices.Contains(programs, name) {
		return nil
	}
	return &startError{127, fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}

func (p *process) findPath(name string) error {
	mode, ok := p.files[path.Clean(name)]
	switch {
	case !ok:
		return &startError{127, fmt.Sprintf("exec: %q: stat %s: no such file or directory", name, name)}
	case mode&0o111 == 0:
		return &startError{126, fmt.Sprintf("exec: %q: permission denied", name)}
	case !slices.Contains(programs, path.Base(name)):
		return &startError{126, fmt.Sprintf("exec: %q: exec format error", name)}
	}
	return nil
}

// startError is why a command can't be run, with the exit code it leaves behind.
type startError struct {
	code int
	text string
}

func (e *startError) Error() string { return e.text }

// Unwrap gives it its class.
func (e *startError) Unwrap() error {
	return api.InvalidArgument("failed to start the container's process: %s", e.text)
}

// exitError ends a script.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// run runs a command and returns its exit code. It ends with ctx.
func (p *process) run(ctx context.Context, argv []string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	switch name := path.Base(argv[0]); name {
	case "true":
		return 0, nil
	case "false":
		return 1, nil
	case "echo":
		args, end := argv[1:], "\n"
		if len(args) > 0 && args[0] == "-n" {
			args, end = args[1:], ""
		}
		_, err := io.WriteString(p.stdout, strings.Join(args, " ")+end)
		return 0, err
	case "cat":
		_, err := io.Copy(p.stdout, p.stdin)
		return 0, err
	case "sleep":
		return p.sleep(ctx, argv[1:])
	case "sh":
		return p.shell(ctx, argv[1:])
	default:
		_, err := fmt.Fprintf(p.stderr, "sh: %s: not found\n", name)
		return 127, err
	}
}

func (p *process) sleep(ctx context.Context, args []string) (int, error) {
	seconds, err := strconv.ParseFloat(strings.Join(args, ""), 64)
	if err != nil {
		_, err := io.WriteString(p.stderr, "sleep: invalid number\n")
		return 1, err
	}
	t := time.NewTimer(time.Duration(seconds * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
		return 0, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// shell runs sh -c SCRIPT, or what it reads from stdin.
func (p *process) shell(ctx context.Context, args []string) (int, error) {
	code, err := 0, error(nil)
	if len(args) > 1 && args[0] == "-c" {
		code, err = p.script(ctx, args[1], 0)
	} else {
		in := bufio.NewScanner(p.stdin)
		for err == nil && in.Scan() {
			code, err = p.script(ctx, in.Text(), code)
		}
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit), nil
	}
	return code, err
}

// script runs commands joined by ; newline && and ||.
func (p *process) script(ctx context.Context, text string, code int) (int, error) {
	run := true
	var words []token
	for _, t := range append(split(text), token{operator: true, text: ";"}) {
		if !t.operator {
			words = append(words, t)
			continue
		}
		if run && len(words) > 0 {
			var err error
			if code, err = p.command(ctx, words, code); err != nil {
				return code, err
			}
		}
		words = nil
		run = t.text == ";" || t.text == "&&" && code == 0 || t.text == "||" && code != 0
	}
	return code, nil
}

// command runs one command with its redirections.
func (p *process) command(ctx context.Context, words []token, last int) (int, error) {
	sub := *p
	var argv []string
	for _, w := range words {
		switch w.text {
		case ">&2", "1>&2":
			sub.stdout = p.stderr
		case "2>&1":
			sub.stderr = p.stdout
		case ">/dev/null":
			sub.stdout = io.Discard
		default:
			argv = append(argv, w.expand(p.env, last))
		}
	}
	switch {
	case len(argv) == 0:
		return 0, nil
	case argv[0] == "exit":
		if len(argv) > 1 {
			last, _ = strconv.Atoi(argv[1]) // a wrong number is 0, near enough
		}
		return last, exitError(last)
	case argv[0] == "exec" && len(argv) > 1:
		code, err := sub.run(ctx, argv[1:])
		if err == nil {
			err = exitError(code)
		}
		return code, err
	}
	return sub.run(ctx, argv)
}
