// Package defaults composes the OCI spec that Docker gives a container of the same options.
package defaults
