// Package daemon is the supervisor: the process that parents containers, holds their streams and keeps their ends.
//
// Its directory on disk:
//
//	containers/ID      a symbolic link to the container's own directory
//	lock               held while a supervisor lives
//	supervisor.log     what it has to say
//
// and the one that does not outlive a reboot:
//
//	sv-HASH.sock       its socket; the hash is of the other directory's path
//	lc-HASH/ID/        what libcontainer keeps
//
// In each container's own directory it keeps supervisor.json: where the container
// stands, so that a supervisor after this one can tell.
package daemon
