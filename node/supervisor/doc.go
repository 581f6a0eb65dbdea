// Package supervisor reaches the process that parents a node's containers and outlives its agent.
//
// There is one supervisor per data directory. Connect starts it if it does not
// run yet, and gives a runtime.Runtime whose containers live on when the agent
// dies. What the two say to each other is in package wire, what the supervisor
// does in package daemon.
package supervisor
