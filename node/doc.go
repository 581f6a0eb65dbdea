// Package node is this host as an engine.
package node
