// Package network connects the containers of one host with each other, with the host and with other hosts' containers.
package network
