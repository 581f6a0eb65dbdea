// Package daemon is the supervisor: the process that parents containers, holds their streams and keeps their ends.
//
// Its directory on disk:
//
//	containers/ID      a symbolic link to the container's own directory
//	libcontainer/ID/   what libcontainer keeps
//	lock               held while a supervisor lives
//	supervisor.log     what it has to say
//
// In each container's own directory it keeps supervisor.json: where the container
// stands, so that a supervisor after this one can tell.
package daemon
