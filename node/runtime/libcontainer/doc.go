// Package libcontainer runs containers through runc's library, as children of this process.
package libcontainer
