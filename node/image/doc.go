// Package image keeps the images of one host: their blobs, names and unpacked layers.
package image
