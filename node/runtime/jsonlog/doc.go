// Package jsonlog is Docker's json-file log: one JSON object a line, in files that rotate.
//
// The newest file is at the log's path, older ones at path.1, path.2 and so on. A
// file is never changed but by appending whole lines: rotation renames it, or
// puts a new one in its place. So a reader in another process that holds a file
// open reads it to its end and then finds the one that followed it.
package jsonlog
