package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

func imageCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "See where images are, bring them to hosts, check them"}
	cmd.AddCommand(imageWhereCommand(g), imageCopyCommand(g), imageVerifyCommand(g), imagePrivateCommand(g), imagePublicCommand(g))
	return cmd
}

func imageWhereCommand(g *globals) *cobra.Command {
	return g.jsonFlag(&cobra.Command{
		Use: "where IMAGE", Short: "List the nodes that hold an image", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			where, err := c.ImageWhere(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.printer(cmd).list(where, "NODE\tIMAGE\tDIGEST\tPRIVATE TO", func(row func(...any)) {
				for _, w := range where {
					who := w.Private
					if !w.Allowed {
						who += " (not to this node)"
					}
					row(w.Node, strings.Join(w.Tags, ","), w.Digest, who)
				}
			})
		},
	})
}

func imageCopyCommand(g *globals) *cobra.Command {
	var all bool
	var filters []string
	cmd := &cobra.Command{
		Use: "copy IMAGE NODE...|--filter FILTER|--all", Short: "Bring an image to nodes before they need it", Args: cobra.MinimumNArgs(1),
		Long: `Bring an image to nodes before they need it: to those named, or that have a tag of
tag:KEY=VALUE; to those with containers that a filter finds; or to all.

A service's next version is there before its containers are replaced with

  shoal image copy web:2 --filter label=service=web
  shoal image copy web:2 --filter ancestor=web:1

The filters are those of "docker ps".

Nodes that fetch at the same time get most of it from each other. A node that fails
doesn't keep others from finishing. On a terminal every node has a line that says how
much has come, how fast, and from whom. With --json, every update is a line, a JSON
object with the node's name as "id", how far it is as "progressDetail", and the bytes
that came from each peer so far as "peers" in "aux".

Exit code 1: at least one node doesn't have the image.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args)+len(filters) > 1) {
				return exitError{exitUsage, errors.New("image copy: name the nodes, or say --filter or --all")}
			}
			users, err := parseFilters(filters)
			if err != nil {
				return exitError{exitUsage, fmt.Errorf("image copy: %w", err)}
			}
			c, err := g.control()
			if err != nil {
				return err
			}
			s, err := c.CopyImage(cmd.Context(), args[0], args[1:], users)
			if err != nil {
				return err
			}
			return showCopy(s, g.copyDisplay(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "to every node of the cluster")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "to nodes with running containers that match, as in docker ps; may be repeated")
	return g.jsonFlag(cmd)
}

// parseFilters reads KEY=VALUE pairs.
func parseFilters(pairs []string) (api.Filters, error) {
	f := api.Filters{}
	for _, p := range pairs {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("filter %q: write KEY=VALUE, for example label=service=web", p)
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

func (g *globals) copyDisplay(out io.Writer) func(node string, p api.Progress) {
	switch {
	case g.json:
		e := json.NewEncoder(out)
		e.SetEscapeHTML(false)
		return func(_ string, p api.Progress) { _ = e.Encode(p) } // a closed pipe ends the program anyway
	case isTerminal(out):
		rows, rates := &liveRows{out: out}, rates{}
		return func(node string, p api.Progress) { rows.show(node, copyText(p, rates.of(node, p, time.Now()))) }
	}
	told := map[string]string{}
	return func(node string, p api.Progress) {
		if told[node] != p.Status {
			told[node] = p.Status
			fmt.Fprintln(out, node+"\t"+copyText(p, 0))
		}
	}
}

// copyDetail is what a line of a copy has besides progress.
type copyDetail struct {
	Peers map[string]int64 `json:"peers"`
	Final bool             `json:"final"`
}

func detailOf(p api.Progress) (d copyDetail) {
	if p.Aux != nil {
		_ = json.Unmarshal(*p.Aux, &d) // of another version: then there is none
	}
	return d
}

// showCopy shows a copy's lines; an error says which nodes failed.
func showCopy(s api.Stream[api.Progress], show func(node string, p api.Progress)) error {
	pending, failed := map[string]bool{}, 0
	for p, err := range api.All(s) {
		if err != nil {
			return fmt.Errorf("the agent's answer broke off: %w", err)
		}
		if p.ID == "" && p.Error != nil {
			return errors.New(p.Error.Message)
		}
		pending[p.ID] = !detailOf(p).Final
		if p.Error != nil {
			failed++
		}
		show(p.ID, p)
	}
	for node, open := range pending {
		if open {
			return fmt.Errorf("the agent's answer broke off before node %s was done", node)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d nodes don't have the image", failed, len(pending))
	}
	return nil
}

// copyText is one node's row; a rate of 0 isn't shown.
func copyText(p api.Progress, rate float64) string {
	words := []string{p.Status}
	if p.Error != nil {
		return p.Status + ": " + p.Error.Message
	}
	if p.Progress != nil && p.Progress.Total > 0 {
		words = append(words, units.HumanSize(float64(p.Progress.Current))+"/"+units.HumanSize(float64(p.Progress.Total)))
	}
	if rate > 0 {
		words = append(words, units.HumanSize(rate)+"/s")
	}
	if from := peersText(detailOf(p).Peers); from != "" {
		words = append(words, "from "+from)
	}
	return strings.Join(words, "  ")
}

func imageVerifyCommand(g *globals) *cobra.Command {
	return g.jsonFlag(&cobra.Command{
		Use: "verify [IMAGE...]", Short: "Read images' blobs on this host again, and mend what is damaged",
		Long: `Read every blob of this host's images, or of those named, again and compare it
with its digest; and every record of an unpacked layer. What doesn't match is put
aside, below images/quarantine in the data directory, and fetched anew from where
images come from.

States: ok; repaired: was damaged or missing, and is here again; lost: nobody has it.
Exit code 1: something is lost.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			s, err := c.VerifyImages(cmd.Context(), args)
			if err != nil {
				return err
			}
			return g.showChecked(cmd, s)
		},
	})
}

// showChecked prints what isn't in order, or all of it as JSON.
func (g *globals) showChecked(cmd *cobra.Command, s api.Stream[image.Checked]) error {
	all := []image.Checked{}
	counts := map[image.CheckState]int{}
	var bytes int64
	live := &liveRows{out: cmd.ErrOrStderr()}
	watched := !g.json && isTerminal(cmd.ErrOrStderr())
	for c, err := range api.All(s) {
		if err != nil {
			return fmt.Errorf("the agent's answer broke off: %w", err)
		}
		if c.State == image.CheckFailed {
			return errors.New(c.Why)
		}
		all = append(all, c)
		counts[c.State]++
		bytes += c.Size
		if watched {
			live.show("verify", fmt.Sprintf("%d read, %s", len(all), units.HumanSize(float64(bytes))))
		}
	}
	err := g.printer(cmd).list(all, "KIND\tDIGEST\tIMAGE\tSTATE\tDETAIL", func(row func(...any)) {
		for _, c := range all {
			row(c.Kind, shortDigest(c.Digest), strings.Join(c.Images, ","), c.State, c.Why)
		}
	})
	if err != nil {
		return err
	}
	if lost := counts[image.CheckLost]; lost > 0 {
		return fmt.Errorf("%d of %d can't be had any more", lost, len(all))
	}
	return nil
}

func shortDigest(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}
