// Package lab runs a throw-away cluster on one machine, each node in a network namespace of its own.
//
// A lab keeps two directories. D holds what people and scripts use:
//
//	D/lab.json            what the lab is made of
//	D/nodeN/agent.toml    the node's configuration
//	D/nodeN/agent.pid     the agent's process, with its start time
//	D/nodeN/agent.log     what the agent logs
//	D/nodeN/namespace     the node's network namespace, pinned
//	D/nodeN/resolv.conf   what `lab exec` shows as /etc/resolv.conf
//	D/nodeN/shoal.sock    the cluster, D/nodeN/node.sock this node
//
// The other one, below /var/lib/shoal-lab, holds the nodes' data, because D is
// usually on a small tmpfs.
//
// The nodes' links end in a further namespace, the switch, whose bridge joins
// them. A partition moves ports to other bridges of the switch, so that packets
// vanish without any end noticing a lost carrier.
package lab
