package registry

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChallenges(t *testing.T) {
	for header, want := range map[string][]challenge{
		`Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push"`: {{"bearer", map[string]string{
			"realm": "https://auth.example/token", "service": "reg", "scope": "repository:a/b:pull,push",
		}}},
		`Basic realm="a \"b\", c"`:                     {{"basic", map[string]string{"realm": `a "b", c`}}},
		`basic REALM = x , Bearer realm="y" , scope=z`: {{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": "y", "scope": "z"}}},
		`Negotiate, Basic realm="x"`:                   {{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "x"}}},
		`Bearer realm="open`:                           {{"bearer", map[string]string{}}},
		`="x"`:                                         nil,
		``:                                             nil,
	} {
		require.Equal(t, want, parseChallenges([]string{header}), header)
	}
	require.Len(t, parseChallenges([]string{strings.Repeat("a, ", 1000)}), maxChallenges)
}

func TestRanges(t *testing.T) {
	for h, want := range map[string][3]int64{"bytes 5-9/10": {5, 9, 10}, "bytes 0-0/*": {0, 0, -1}} {
		first, last, total, ok := contentRange(h)
		require.True(t, ok, h)
		require.Equal(t, want, [3]int64{first, last, total}, h)
	}
	for _, h := range []string{"", "bytes", "bytes 9-5/10", "bytes 5-10/10", "bytes +5-9/10", "bytes 5-9", "5-9/10", "bytes 5-9/99999999999999999999", "bytes */10"} {
		_, _, _, ok := contentRange(h)
		require.False(t, ok, h)
	}
	for h, want := range map[string]int64{"0-41": 42, "bytes=0-41": 42, "0-0": 0} {
		n, ok := received(h)
		require.True(t, ok, h)
		require.Equal(t, want, n, h)
	}
	for _, h := range []string{"", "1-41", "0-", "-1", "0--1", "0-9223372036854775807"} {
		_, ok := received(h)
		require.False(t, ok, h)
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push"`)
	f.Add(`Basic realm="a \"b\"" , Bearer x=y`)
	f.Add("Basic ,,, =\"\\")
	f.Fuzz(func(t *testing.T, h string) {
		all := parseChallenges([]string{h, h})
		if len(all) > maxChallenges {
			t.Fatal("too many")
		}
		for _, c := range all {
			if c.scheme == "" || len(c.params) > maxParams {
				t.Fatalf("%+v", c)
			}
		}
	})
}

func FuzzRanges(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("0-41")
	f.Add("bytes=0-0")
	f.Fuzz(func(t *testing.T, h string) {
		if first, last, total, ok := contentRange(h); ok && (first < 0 || last < first || total >= 0 && last >= total) {
			t.Fatal(first, last, total)
		}
		if n, ok := received(h); ok && n < 0 {
			t.Fatal(n)
		}
	})
}

func FuzzError(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`))
	f.Add(401, []byte(`{"details":"incorrect username or password"}`))
	f.Add(500, []byte("<html>"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := parseError(status, body)
		if strings.ContainsAny(e.Error(), "\x1b\n\r\x00") || len(e.Error()) > 8*maxErrorText || judged(e) == nil {
			t.Fatalf("%q", e.Error())
		}
	})
}
