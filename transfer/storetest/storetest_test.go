package storetest

import (
	"testing"

	"github.com/shoal-engine/shoal/transfer"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) (transfer.Store, func() transfer.Store) {
		return Memory(), func() transfer.Store { return nil }
	})
}

func TestDir(t *testing.T) {
	Run(t, func(t *testing.T) (transfer.Store, func() transfer.Store) {
		dir := t.TempDir()
		return Dir(dir), func() transfer.Store { return Dir(dir) }
	})
}
