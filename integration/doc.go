// Package integration tests real agents in network namespaces with the clients that people use.
package integration
