package apitest

import (
	"os"
	"strconv"
	"strings"
)

// token is a word or an operator of a script.
type token struct {
	operator, literal bool
	text              string
}

// expand puts variables in, except into single quotes.
func (t token) expand(env map[string]string, last int) string {
	if t.literal {
		return t.text
	}
	return os.Expand(t.text, func(name string) string {
		if name == "?" {
			return strconv.Itoa(last)
		}
		return env[name]
	})
}

// split cuts a script into words and the operators ; && || and the newline.
func split(text string) []token {
	var all []token
	var word strings.Builder
	begun, literal := false, false
	end := func() {
		if begun {
			all = append(all, token{literal: literal, text: word.String()})
		}
		word.Reset()
		begun, literal = false, false
	}
	for i := 0; i < len(text); i++ {
		ch := text[i]
		switch {
		case ch == '\'' || ch == '"':
			begun, literal = true, literal || ch == '\''
			n := strings.IndexByte(text[i+1:], ch)
			if n < 0 {
				n = len(text) - i - 1
			}
			word.WriteString(text[i+1 : i+1+n])
			i += n + 1
		case ch == ';' || ch == '\n':
			end()
			all = append(all, token{operator: true, text: ";"})
		case strings.HasPrefix(text[i:], "&&") || strings.HasPrefix(text[i:], "||"):
			end()
			all = append(all, token{operator: true, text: text[i : i+2]})
			i++
		case ch == ' ' || ch == '\t':
			end()
		default:
			begun = true
			word.WriteByte(ch)
		}
	}
	end()
	return all
}
