package transfer

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// wholeKey is where a context keeps what PartOf said.
type wholeKey struct{}

// PartOf says that what is fetched under the context belongs to a whole, such as an
// image's layers to its manifest. Locators that know only who holds wholes look
// there.
func PartOf(ctx context.Context, whole digest.Digest) context.Context {
	return context.WithValue(ctx, wholeKey{}, whole)
}

// Whole is what PartOf said, or empty.
func Whole(ctx context.Context) digest.Digest {
	d, _ := ctx.Value(wholeKey{}).(digest.Digest)
	return d
}
