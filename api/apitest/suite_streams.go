package apitest

import (
	"bytes"
	"io"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func streamTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"Logs": testLogs, "FollowLogs": testFollow, "AttachBeforeStart": testAttachBeforeStart,
		"AttachReplaysLogs": testAttachLogs, "StdinAndHalfClose": testStdin, "LongStdin": testLongStdin,
		"OutputOutlivesStdin": testHalfClosed, "TwoClients": testTwoClients, "Terminal": testTerminal,
		"TypingIntoATerminal": testTyping, "UnfinishedLine": testUnfinishedLine,
	}
}

const twoStreams = "echo one; echo two >&2; echo three"

func testLogs(s *suite) {
	id := s.finished("sh", "-c", twoStreams)
	o := everything()
	out, err := s.logs(id, o)
	assert.Equal(s, "one\nthree\n", out)
	assert.Equal(s, "two\n", err)

	o.Stderr = false
	out, err = s.logs(id, o)
	assert.Equal(s, "one\nthree\n", out)
	assert.Empty(s, err)

	o = everything()
	o.Tail = 1
	out, err = s.logs(id, o)
	assert.Equal(s, 1, strings.Count(out+err, "\n"), "the last line of both streams")
	o.Tail = 0
	out, err = s.logs(id, o)
	assert.Empty(s, out+err)

	o = everything()
	o.Since = time.Now().Add(time.Hour)
	out, err = s.logs(id, o)
	assert.Empty(s, out+err, "since then nothing was written")
	o = everything()
	o.Until = time.Now().Add(-time.Hour)
	out, err = s.logs(id, o)
	assert.Empty(s, out+err, "until then nothing was written")

	o = everything()
	o.Timestamps = true
	out, _ = s.logs(id, o)
	for line := range strings.Lines(out) {
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		require.NoError(s, err)
		assert.WithinDuration(s, time.Now(), at, limit)
	}
	_, e := s.Engine.ContainerLogs(s.ctx, id, api.LogsOptions{Tail: -1})
	assert.Error(s, e, "neither stream is no choice")
}

func testFollow(s *suite) {
	id := s.create(interactive(s.options("cat")))
	session := s.attach(id, true)
	s.start(id)
	o := everything()
	o.Follow = true
	logs, err := s.Engine.ContainerLogs(s.ctx, id, o)
	require.NoError(s, err)
	defer logs.Close()
	for _, line := range []string{"first\n", "second\n"} {
		_, err := io.WriteString(session, line)
		require.NoError(s, err)
		frame := make([]byte, 8+len(line))
		_, err = io.ReadFull(logs, frame)
		require.NoError(s, err)
		assert.Equal(s, line, string(frame[8:]), "a line is there as soon as it is written")
	}
	require.NoError(s, session.CloseWrite())
	rest, err := io.ReadAll(logs)
	require.NoError(s, err)
	assert.Empty(s, rest, "the log ends with the container")
}

func testAttachBeforeStart(s *suite) {
	id := s.create(s.options("sh", "-c", twoStreams))
	session := s.attach(id, false)
	assert.True(s, session.Multiplexed)
	s.start(id)
	out, err := s.split(session, session.Multiplexed)
	assert.Equal(s, "one\nthree\n", out)
	assert.Equal(s, "two\n", err)
}

func testAttachLogs(s *suite) {
	id := s.finished("sh", "-c", twoStreams)
	session, err := s.Engine.AttachContainer(s.ctx, id, api.AttachOptions{Stdout: true, Logs: true})
	require.NoError(s, err)
	defer session.Close()
	out, _ := s.split(session, session.Multiplexed)
	assert.Equal(s, "one\nthree\n", out)
}

func testStdin(s *suite) {
	id := s.create(interactive(s.options("cat")))
	session := s.attach(id, true)
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	_, err := io.WriteString(session, "hello\n")
	require.NoError(s, err)
	frame := make([]byte, 8+len("hello\n"))
	_, err = io.ReadFull(session, frame)
	require.NoError(s, err)
	assert.Equal(s, "hello\n", string(frame[8:]))
	require.NoError(s, session.CloseWrite())
	rest, err := io.ReadAll(session)
	require.NoError(s, err)
	assert.Empty(s, rest)
	assert.Equal(s, 0, s.recv(wait))
}

func testLongStdin(s *suite) {
	id := s.create(interactive(s.options("cat")))
	session := s.attach(id, true)
	s.start(id)
	sent := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10) // 1 MiB: more than any buffer on the way
	written := make(chan error, 1)
	go func() {
		_, err := session.Write(sent)
		if err == nil {
			err = session.CloseWrite()
		}
		written <- err
	}()
	out, _ := s.split(session, session.Multiplexed)
	require.NoError(s, <-written)
	assert.True(s, string(sent) == out, "%d bytes in, %d bytes out", len(sent), len(out))
}

// testHalfClosed writes everything and closes before anything is read.
func testHalfClosed(s *suite) {
	id := s.create(interactive(s.options("sh", "-c", "cat; echo after")))
	session := s.attach(id, true)
	_, err := io.WriteString(session, "early\n")
	require.NoError(s, err)
	require.NoError(s, session.CloseWrite())
	s.start(id)
	out, _ := s.split(session, session.Multiplexed)
	assert.Equal(s, "early\nafter\n", out)
}

func testTwoClients(s *suite) {
	id := s.create(s.options("sh", "-c", "echo both"))
	a, b := s.attach(id, false), s.attach(id, false)
	s.start(id)
	outA, _ := s.split(a, a.Multiplexed)
	outB, _ := s.split(b, b.Multiplexed)
	assert.Equal(s, "both\n", outA)
	assert.Equal(s, "both\n", outB)
}

func testTerminal(s *suite) {
	o := s.options("sh", "-c", "echo out; echo err >&2")
	o.Config.Tty = true
	id := s.create(o)
	session := s.attach(id, false)
	assert.False(s, session.Multiplexed, "a terminal has one stream")
	s.start(id)
	out, _ := s.split(session, session.Multiplexed)
	assert.Equal(s, "out\r\nerr\r\n", out)
	logged, _ := s.logs(id, everything())
	assert.Equal(s, "out\r\nerr\r\n", logged)
}

func testTyping(s *suite) {
	o := interactive(s.options("cat"))
	o.Config.Tty = true
	id := s.create(o)
	session := s.attach(id, true)
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	require.NoError(s, s.Engine.ResizeContainer(s.ctx, id, api.TerminalSize{Height: 24, Width: 80}))
	_, err := io.WriteString(session, "hi\n")
	require.NoError(s, err)
	echoed := make([]byte, len("hi\r\nhi\r\n"))
	_, err = io.ReadFull(session, echoed)
	require.NoError(s, err)
	assert.Equal(s, "hi\r\nhi\r\n", string(echoed), "once from the terminal, once from cat")
	_, err = session.Write([]byte{4}) // ^D
	require.NoError(s, err)
	assert.Equal(s, 0, s.recv(wait))
}

func testUnfinishedLine(s *suite) {
	id := s.finished("sh", "-c", "echo -n unfinished")
	out, _ := s.logs(id, everything())
	assert.Equal(s, "unfinished", out)
}
