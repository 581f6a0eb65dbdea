package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/discovery/lb"
)

type lbFlags struct {
	template, out, check, reload, listen string
	params                               []string
	once                                 bool
	timeout                              time.Duration
}

func lbCommand(g *globals) *cobra.Command {
	f := &lbFlags{}
	cmd := &cobra.Command{
		Use:   "lb",
		Short: "Keep a load balancer's configuration in step with the containers' tags",
		Long: `Keep a load balancer's configuration in step with the containers' tags.

Containers ask for traffic with tags: lb.host, lb.path, lb.port, lb.weight,
lb.drain. On every change the template is rendered; if the text differs and the
check command accepts a draft of it, the file is replaced in one step and the
reload command runs. Both commands are run by a shell with $FILE set.

  shoal lb --out /etc/haproxy/haproxy.cfg --listen :80 \
    --check 'haproxy -c -q -f "$FILE"' --reload 'systemctl reload haproxy'

HAProxy's template is built in; --template takes any other. docs/load-balancing.md
tells what a template can use.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLB(cmd, g, f) },
	}
	cmd.Flags().StringVar(&f.template, "template", "", "template file (default: the built-in one for HAProxy)")
	cmd.Flags().StringVar(&f.out, "out", "", "file to keep; without it, print once")
	cmd.Flags().StringVar(&f.check, "check", "", "command that accepts or refuses a draft, $FILE")
	cmd.Flags().StringVar(&f.reload, "reload", "", "command to run after a change of $FILE")
	cmd.Flags().StringVar(&f.listen, "listen", "", "the template's parameter bind: where the load balancer listens")
	cmd.Flags().StringArrayVar(&f.params, "param", nil, "NAME=VALUE, a parameter of the template (again for more)")
	cmd.Flags().BoolVar(&f.once, "once", false, "render once and end")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "bound on each command")
	return cmd
}

func runLB(cmd *cobra.Command, g *globals, f *lbFlags) error {
	tmpl, err := f.parse()
	if err != nil {
		return exitError{exitUsage, err}
	}
	c, err := g.control()
	if err != nil {
		return err
	}
	reader, err := c.Catalog(cmd.Context())
	if err != nil {
		return err
	}
	if f.out == "" {
		text, err := tmpl.Render(lb.Build(reader.View()))
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	out, err := filepath.Abs(f.out)
	if err != nil {
		return err
	}
	r := lb.New(lb.Config{
		Reader: reader, Template: tmpl, File: out, Check: f.check, Reload: f.reload, Timeout: f.timeout,
		Logger: logger(defaultLog(), cmd.ErrOrStderr()),
	})
	if f.once {
		return r.Once(cmd.Context())
	}
	return r.Run(cmd.Context())
}

func (f *lbFlags) parse() (*lb.Template, error) {
	params := map[string]string{}
	for _, p := range f.params {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, fmt.Errorf("parameter %q: want NAME=VALUE", p)
		}
		params[k] = v
	}
	if f.listen != "" {
		params["bind"] = f.listen
	}
	if f.once && f.out == "" {
		return nil, errors.New("--once needs --out; without --out it prints once anyway")
	}
	if f.template == "" {
		return lb.ParseTemplate("haproxy.cfg.tmpl", lb.HAProxy, params)
	}
	raw, err := os.ReadFile(f.template)
	if err != nil {
		return nil, fmt.Errorf("read the template: %w", err)
	}
	return lb.ParseTemplate(f.template, string(raw), params)
}
