package datadir

import (
	"fmt"
	"path"
	"strings"

	"everpage/wal/pg"
)

// access turns lines of pg_hba.conf or pg_ident.conf, and of files that these include, into comments where they name a file that is not there: no server
// starts with one.
func (r *confReader) access(p string, m pg.Major) {
	f := r.files[p]
	if f == nil || r.read[p] {
		return
	}
	r.read[p] = true
	var out strings.Builder
	for _, line := range accessLines(string(f.Content)) {
		if why := r.unreachable(p, m, accessTokens(line)); why != "" {
			r.notes = append(r.notes, fmt.Sprintf("%s: the line %q is left out: %s", p, strings.TrimSpace(line), why))
			for part := range strings.Lines(line) {
				out.WriteString("# left out of this copy: " + part)
			}
			continue
		}
		out.WriteString(line)
	}
	f.Content = []byte(out.String())
}

// unreachable tells what a line refers to and is not there, "" if all is. Includes that stay are followed.
func (r *confReader) unreachable(file string, m pg.Major, tokens []accessToken) string {
	at := func(name string) string {
		if path.IsAbs(name) {
			return name
		}
		return path.Join(path.Dir(file), name)
	}
	missing := func(p string) bool {
		if path.IsAbs(p) {
			return !r.pathExists(p)
		}
		return r.files[p] == nil
	}
	if m >= 16 && len(tokens) == 2 {
		switch p := at(tokens[1].text); tokens[0].text {
		case "include", "include_if_exists":
			if tokens[0].text == "include" && missing(p) {
				return "the file is not in the source's data directory"
			}
			r.access(p, m)
			return ""
		case "include_dir":
			if path.IsAbs(p) {
				if missing(p) {
					return "the directory does not exist"
				}
				return ""
			}
			names := r.confsIn(p)
			for _, n := range names {
				r.access(n, m)
			}
			if len(names) == 0 {
				return "the directory holds no file of the source's data directory"
			}
			return ""
		}
	}
	for _, t := range tokens {
		if name, ok := strings.CutPrefix(t.text, "@"); ok && !t.quoted && name != "" && missing(at(name)) {
			return "the file that it names is not in the source's data directory"
		}
	}
	return ""
}

// accessLines are the lines of such a file; one that ends with a backslash goes on in the next.
func accessLines(text string) (lines []string) {
	whole := ""
	for line := range strings.Lines(text) {
		whole += line
		if !strings.HasSuffix(strings.TrimRight(line, "\r\n"), `\`) {
			lines = append(lines, whole)
			whole = ""
		}
	}
	if whole != "" {
		lines = append(lines, whole)
	}
	return lines
}

// accessToken is a word of a line.
type accessToken struct {
	text   string
	quoted bool // it begins with a quote
}

// accessTokens are a line's words, as next_token of hba.c reads them.
func accessTokens(line string) (tokens []accessToken) {
	line = strings.NewReplacer("\\\r\n", "", "\\\n", "").Replace(line)
	var t strings.Builder
	began, quoted, inside := false, false, false
	end := func() {
		if began {
			tokens = append(tokens, accessToken{t.String(), quoted})
		}
		t.Reset()
		began, quoted = false, false
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"' && inside && i+1 < len(line) && line[i+1] == '"':
			i++
			t.WriteByte('"')
		case c == '"':
			quoted = quoted || !began
			began, inside = true, !inside
		case inside:
			t.WriteByte(c)
		case c == '#':
			end()
			return tokens
		case c == ' ', c == '\t', c == '\r', c == '\n', c == ',':
			end()
		default:
			began = true
			t.WriteByte(c)
		}
	}
	end()
	return tokens
}
