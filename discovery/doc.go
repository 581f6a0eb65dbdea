// Package discovery answers, from the catalog, where the containers one looks for serve.
package discovery
