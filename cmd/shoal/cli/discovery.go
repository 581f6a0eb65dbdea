package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/discovery"
)

// query holds the flags that choose endpoints.
type query struct {
	tags []string
	port string
}

func (q *query) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringArrayVar(&q.tags, "tag", nil, "only containers with this tag, KEY or KEY=VALUE (again for more)")
	cmd.Flags().StringVar(&q.port, "port", "", "only this port, such as 80 or 53/udp")
	return cmd
}

// values is the query for a name, which may be left out where a tag is given.
func (q *query) values(args []string) (discovery.Query, error) {
	port, proto, err := discovery.ParsePort(q.port)
	if err != nil {
		return discovery.Query{}, exitError{exitUsage, err}
	}
	out := discovery.Query{Tags: q.tags, Port: port, Proto: proto}
	if len(args) > 0 {
		out.Name = args[0]
	}
	if out.Name == "" && len(out.Tags) == 0 {
		return out, exitError{exitUsage, errors.New("say which: a container's NAME, or --tag KEY=VALUE")}
	}
	return out, nil
}

func resolveCommand(g *globals) *cobra.Command {
	q := &query{}
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "resolve [NAME]",
		Short: "Say where a container serves; wait for it if asked to",
		Long: `Say at which addresses and ports a container, or all that carry a tag, serve.
With --wait the answer comes as soon as there is one, so that what depends on
something else can be started in any order.

  shoal resolve db --port 5432 --wait 1m
  shoal resolve --tag tier=front

Exit code 3: there is none (in time).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			want, err := q.values(args)
			if err != nil {
				return err
			}
			found, err := c.Resolve(cmd.Context(), want, wait)
			if errdefs.IsNotFound(err) {
				return exitError{exitNotThere, err}
			}
			if err != nil {
				return err
			}
			return g.printer(cmd).list(found, "NAME\tNODE\tADDRESS\tPUBLISHED", func(row func(...any)) {
				for _, e := range found {
					published := "-"
					if e.Published.IsValid() {
						published = e.Published.String()
					}
					row(e.Name, e.Node, fmt.Sprintf("%s:%d/%s", e.Address, e.Port, e.Proto), published)
				}
			})
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for an answer")
	return g.jsonFlag(q.flags(cmd))
}

func watchCommand(g *globals) *cobra.Command {
	q := &query{}
	cmd := &cobra.Command{
		Use:   "watch [NAME]",
		Short: "Follow where containers serve: what there is, then every change",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			want := discovery.Query{}
			if len(args) > 0 || len(q.tags) > 0 || q.port != "" {
				if want, err = q.values(args); err != nil {
					return err
				}
			}
			changes, err := c.Watch(cmd.Context(), want)
			if err != nil {
				return err
			}
			for change, err := range api.All(changes) {
				if cmd.Context().Err() != nil {
					return nil // interrupted: that is how a watch ends
				}
				if err != nil {
					return err
				}
				if g.json {
					err = json.NewEncoder(cmd.OutOrStdout()).Encode(change)
				} else {
					err = printChange(cmd, change)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	return g.jsonFlag(q.flags(cmd))
}

func printChange(cmd *cobra.Command, c discovery.Change) error {
	for _, e := range c.Endpoints {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-8s %s\t%s\t%s:%d/%s\n", c.Type, e.Name, e.Node, e.Address, e.Port, e.Proto); err != nil {
			return err
		}
	}
	return nil
}
