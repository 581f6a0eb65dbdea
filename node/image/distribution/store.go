package distribution

import (
	"github.com/shoal-engine/shoal/node/image"
)

// store is an image store as Blobs.
type store struct{ *image.Store }

// Over gives an image store's blobs.
func Over(s *image.Store) Blobs { return store{s} }

// Begin implements Blobs.
func (s store) Begin() (Upload, error) {
	u, err := s.Store.Begin()
	if err != nil {
		return nil, err
	}
	return u, nil
}
