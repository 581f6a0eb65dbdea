package server

import (
	"net/http"

	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

func networkRoutes() []route {
	return []route{
		{method: "GET", path: "/networks", id: "NetworkList", doc: "List networks",
			query:  []param{{"filters", "string", "JSON of keys and values"}},
			status: 200, answer: []network.Inspect{}, handle: listNetworks},
		{method: "GET", path: "/networks/{id}", id: "NetworkInspect", doc: "Inspect a network",
			query:  []param{{"verbose", "boolean", "with details"}, {"scope", "string", "local or swarm"}},
			status: 200, answer: network.Inspect{}, handle: inspectNetwork},
		{method: "POST", path: "/networks/prune", id: "NetworkPrune", doc: "Remove networks nobody needs; those there are stay",
			query:  []param{{"filters", "string", "JSON of keys and values"}},
			status: 200, answer: network.PruneReport{}, handle: pruneNetworks},
	}
}

func listNetworks(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	all, err := c.engine.ListNetworks(c.r.Context(), f)
	if err != nil {
		return err
	}
	out := make([]network.Inspect, 0, len(all))
	for _, n := range all {
		out = append(out, c.oldNetwork(n))
	}
	return c.json(http.StatusOK, out)
}

func inspectNetwork(c *call) error {
	n, err := c.engine.InspectNetwork(c.r.Context(), c.arg, api.NetworkInspectOptions{
		Verbose: c.flag("verbose"), Scope: c.query.Get("scope"),
	})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.oldNetwork(n))
}

// pruneNetworks finds nothing to do: there are only the networks every engine has.
func pruneNetworks(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := f.Only("label", "label!", "until"); err != nil {
		return err
	}
	return c.json(http.StatusOK, network.PruneReport{NetworksDeleted: []string{}})
}
