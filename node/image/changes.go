package image

import (
	"encoding/json"
	"path"
	"slices"
	"strconv"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// applyChanges changes an image's configuration as the Dockerfile instructions say
// that import and commit take.
func applyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	for _, line := range changes {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			name, rest = line[:i], strings.TrimSpace(line[i:])
		}
		name = strings.ToUpper(name)
		apply, ok := instructions[name]
		if !ok {
			return api.InvalidArgument("%s is not a valid change command", clip(name))
		}
		if rest == "" {
			return api.InvalidArgument("%s requires at least one argument", name)
		}
		if err := apply(c, rest); err != nil {
			return err
		}
	}
	return nil
}

// instructions are Dockerfile's, as far as they set configuration and nothing else.
var instructions = map[string]func(c *dockerspec.DockerOCIImageConfig, rest string) error{
	"CMD":        func(c *dockerspec.DockerOCIImageConfig, rest string) error { c.Cmd = command(rest); return nil },
	"ENTRYPOINT": func(c *dockerspec.DockerOCIImageConfig, rest string) error { c.Entrypoint = command(rest); return nil },
	"ENV":        setEnv,
	"EXPOSE":     expose,
	"LABEL":      setLabels,
	"STOPSIGNAL": func(c *dockerspec.DockerOCIImageConfig, rest string) error { c.StopSignal = rest; return nil },
	"USER":       func(c *dockerspec.DockerOCIImageConfig, rest string) error { c.User = rest; return nil },
	"VOLUME":     volumes,
	"WORKDIR":    workdir,
}

// jsonList reads an instruction's JSON form; false if it is not one.
func jsonList(s string) ([]string, bool) {
	var list []string
	if !strings.HasPrefix(s, "[") || json.Unmarshal([]byte(s), &list) != nil {
		return nil, false
	}
	return list, true
}

// command is a JSON list, or words for a shell.
func command(s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}

func setEnv(c *dockerspec.DockerOCIImageConfig, rest string) error {
	pairs, err := pairs("ENV", rest)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		same := func(e string) bool { return strings.HasPrefix(e, p[0]+"=") }
		entry := p[0] + "=" + p[1]
		if i := slices.IndexFunc(c.Env, same); i >= 0 {
			c.Env[i] = entry
		} else {
			c.Env = append(c.Env, entry)
		}
	}
	return nil
}

func setLabels(c *dockerspec.DockerOCIImageConfig, rest string) error {
	pairs, err := pairs("LABEL", rest)
	if err != nil {
		return err
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	for _, p := range pairs {
		c.Labels[p[0]] = p[1]
	}
	return nil
}

// pairs reads k=v k2="v 2", or the old form with one pair, k v.
func pairs(name, rest string) ([][2]string, error) {
	words, err := words(rest)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		key, value, ok := strings.Cut(rest, " ")
		if !ok {
			return nil, api.InvalidArgument("%s must have two arguments", name)
		}
		return [][2]string{{key, strings.TrimSpace(value)}}, nil
	}
	var out [][2]string
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok {
			return nil, api.InvalidArgument("Syntax error - can't find = in %q. Must be of the form: name=value", clip(w))
		}
		if key == "" {
			return nil, api.InvalidArgument("%s names can not be blank", name)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}

// words splits at white space, but within quotes; backslashes quote one character.
func words(s string) ([]string, error) {
	var (
		out   []string
		word  strings.Builder
		in    bool // within a word
		quote rune
		esc   bool
	)
	for _, r := range s {
		switch {
		case esc:
			word.WriteRune(r)
			esc = false
		case r == '\\' && quote != '\'':
			esc, in = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ' || r == '\t':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || esc {
		return nil, api.InvalidArgument("unterminated quote in %q", clip(s))
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

func expose(c *dockerspec.DockerOCIImageConfig, rest string) error {
	for _, f := range strings.Fields(rest) {
		port, proto, ok := strings.Cut(f, "/")
		if !ok {
			proto = "tcp"
		}
		first, last, isRange := strings.Cut(port, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b < a || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return api.InvalidArgument("invalid containerPort: %s", clip(f))
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for p := a; p <= b; p++ {
			c.ExposedPorts[strconv.FormatUint(p, 10)+"/"+proto] = struct{}{}
		}
	}
	return nil
}

func volumes(c *dockerspec.DockerOCIImageConfig, rest string) error {
	list, ok := jsonList(rest)
	if !ok {
		list = strings.Fields(rest)
	}
	if c.Volumes == nil {
		c.Volumes = map[string]struct{}{}
	}
	for _, v := range list {
		if v = strings.TrimSpace(v); v == "" {
			return api.InvalidArgument("VOLUME specified can not be an empty string")
		}
		c.Volumes[v] = struct{}{}
	}
	return nil
}

func workdir(c *dockerspec.DockerOCIImageConfig, rest string) error {
	if !path.IsAbs(rest) {
		rest = path.Join("/", c.WorkingDir, rest)
	}
	c.WorkingDir = path.Clean(rest)
	return nil
}
