package image

import (
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func TestChanges(t *testing.T) {
	type config = ocispec.ImageConfig
	for line, want := range map[string]config{
		`CMD ["/bin/sh", "-c"]`:      {Cmd: []string{"/bin/sh", "-c"}},
		`cmd echo "hi"`:              {Cmd: []string{"/bin/sh", "-c", `echo "hi"`}},
		`ENTRYPOINT ["/x"]`:          {Entrypoint: []string{"/x"}},
		"ENV a=1 b=2":                {Env: []string{"a=1", "b=2"}},
		"ENV a=1 a=2":                {Env: []string{"a=2"}},
		"ENV a one two":              {Env: []string{"a=one two"}},
		`ENV a="x y" b=x\ y c='\'`:   {Env: []string{"a=x y", "b=x y", `c=\`}},
		"EXPOSE 80 53/udp 8000-8001": {ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}},
		`LABEL a=1 "b c"="d e"`:      {Labels: map[string]string{"a": "1", "b c": "d e"}},
		"USER me:us":                 {User: "me:us"},
		"WORKDIR a/../b":             {WorkingDir: "/b"},
		`VOLUME ["/a", "/b"]`:        {Volumes: map[string]struct{}{"/a": {}, "/b": {}}},
		"VOLUME /a /b":               {Volumes: map[string]struct{}{"/a": {}, "/b": {}}},
		"STOPSIGNAL SIGINT":          {StopSignal: "SIGINT"},
		"# a comment":                {},
		"":                           {},
	} {
		var got dockerspec.DockerOCIImageConfig
		require.NoError(t, applyChanges(&got, []string{line}), line)
		require.Equal(t, want, got.ImageConfig, line)
	}
	for line, want := range map[string]string{
		"RUN x":          "RUN is not a valid change command",
		"CMD":            "CMD requires at least one argument",
		"ENV a":          "ENV must have two arguments",
		"ENV a=1 b":      `Syntax error - can't find = in "b". Must be of the form: name=value`,
		"ENV =1":         "ENV names can not be blank",
		`LABEL a="1`:     "unterminated quote",
		"EXPOSE 80/icmp": "invalid containerPort: 80/icmp",
		"EXPOSE 0":       "invalid containerPort: 0",
		"EXPOSE 9-8":     "invalid containerPort: 9-8",
		`VOLUME [""]`:    "VOLUME specified can not be an empty string",
	} {
		var got dockerspec.DockerOCIImageConfig
		require.ErrorContains(t, applyChanges(&got, []string{line}), want, line)
	}
}
