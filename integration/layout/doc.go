// Package layout holds the tree to the layout that ARCHITECTURE.md draws.
package layout
