package apiv1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestStatusAndFromStatusAreInverse(t *testing.T) {
	for _, c := range classes {
		err := FromStatus(c.status, "text")
		assert.Equal(t, c.status, Status(err), "%v", c.class)
		assert.Equal(t, "text", err.Error())
		assert.Equal(t, c.status, Status(fmt.Errorf("step: %w", err)))
	}
	assert.Equal(t, 500, Status(errors.New("x")))
	assert.Equal(t, 400, Status(FromStatus(418, "x")), "clients' faults stay clients' faults")
	assert.Equal(t, 500, Status(FromStatus(599, "x")))
	assert.Equal(t, 413, Status(InvalidArgument("x: %w", &http.MaxBytesError{Limit: 1})))
}

func TestErrorsKeepTheirCauses(t *testing.T) {
	err := NotFound("look up: %w", io.EOF)
	assert.ErrorIs(t, err, io.EOF)
	assert.Equal(t, "look up: EOF", err.Error())
}

func TestFiltersInBothEncodings(t *testing.T) {
	want := Filters{"a": {"x", "y"}, "b": {"z"}}
	for _, s := range []string{`{"a":["x","y"],"b":["z"]}`, `{"a":{"x":true,"y":true},"b":{"z":true}}`} {
		got, err := ParseFilters(s)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	for _, s := range []string{"x", "[]", `{"a":"x"}`, `{"a":{"x":1}}`} {
		_, err := ParseFilters(s)
		assert.EqualError(t, err, "invalid filter", s)
	}
	assert.NoError(t, want.Only("a", "b", "c"))
	assert.EqualError(t, want.Only("b"), "invalid filter 'a'")
	assert.True(t, want.Match("a", "y") && want.Match("none", "y") && !want.Match("b", "y"))
}

func FuzzParseFilters(f *testing.F) {
	for _, s := range []string{"", "null", `{"a":["x"]}`, `{"a":{"x":true}}`, `{"a":{"x":false}}`, `{"a":null}`, "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseFilters(s)
		if err != nil || len(got) == 0 {
			return
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseFilters(string(b))
		if err != nil {
			t.Fatalf("%s can't be read: %v", b, err)
		}
		b2, err := json.Marshal(again)
		if err != nil || string(b) != string(b2) {
			t.Fatalf("%s became %s", b, b2)
		}
		if reflect.DeepEqual(got, Filters(nil)) {
			t.Fatal("nothing was read")
		}
	})
}

func TestPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, send, finish := Pipe[int](t.Context())
		go func() {
			for i := range 3 {
				_ = send(i)
			}
			finish(nil)
		}()
		var got []int
		for v, err := range All(s) {
			require.NoError(t, err)
			got = append(got, v)
		}
		assert.Equal(t, []int{0, 1, 2}, got)

		s, send, _ = Pipe[int](t.Context())
		failed := make(chan error)
		go func() { failed <- send(1) }()
		synctest.Wait()
		require.NoError(t, s.Close())
		assert.ErrorIs(t, <-failed, context.Canceled, "a stream that nobody reads lets go of who feeds it")

		ctx, cancel := context.WithCancelCause(t.Context())
		s, _, _ = Pipe[int](ctx)
		cancel(io.ErrNoProgress)
		_, err := s.Recv()
		assert.ErrorIs(t, err, io.ErrNoProgress)
	})
}

func TestOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := One(t.Context(), func(context.Context) (int, error) { return 7, nil })
		v, err := s.Recv()
		assert.Equal(t, 7, v)
		require.NoError(t, err)
		_, err = s.Recv()
		assert.Equal(t, io.EOF, err)
		s = One(t.Context(), func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		require.NoError(t, s.Close())
		_, err = s.Recv()
		assert.ErrorIs(t, err, context.Canceled)
	})
}

// breaking ends with an error that has io.EOF inside, as a connection's end in the middle
// of an answer does.
type breaking struct{ Stream[int] }

func (breaking) Recv() (int, error) { return 0, fmt.Errorf("connection closed: %w", io.EOF) }
func (breaking) Close() error       { return nil }

// TestBrokenIsNoEnd: what an answer wraps isn't its end.
func TestBrokenIsNoEnd(t *testing.T) {
	var last error
	for _, err := range All(breaking{}) {
		last = err
	}
	if !errors.Is(last, io.EOF) {
		t.Fatalf("the stream broke, and all that was told is %v", last)
	}
}
