package kernel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// maxMountLine bounds one line of the mount table: four paths of PATH_MAX bytes, each byte escaped.
const maxMountLine = 4 * 4 * 4096

// Info is one line of /proc/self/mountinfo.
type Info struct {
	ID      int
	Device  string // major:minor
	Dir     string // the mount point, decoded
	Options string // of the mount, and of the superblock
	Type    string
	Source  string
}

// parseInfo reads the mount table. Lines that it does not understand are left out: other mounts are none of our business.
func parseInfo(r io.Reader) ([]Info, error) {
	var all []Info
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxMountLine)
	for sc.Scan() {
		if m, ok := parseInfoLine(sc.Text()); ok {
			all = append(all, m)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	return all, nil
}

// parseInfoLine reads "36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue".
func parseInfoLine(line string) (Info, bool) {
	front, back, ok := strings.Cut(line, " - ")
	if !ok {
		return Info{}, false
	}
	f, b := strings.Split(front, " "), strings.Split(back, " ")
	if len(f) < 6 || len(b) < 3 {
		return Info{}, false
	}
	id, err := strconv.Atoi(f[0])
	if err != nil {
		return Info{}, false
	}
	return Info{ID: id, Device: f[2], Dir: unescape(f[4]), Options: f[5] + "," + b[2], Type: b[0], Source: unescape(b[1])}, true
}

// unescape decodes the octal escapes (\040) with which the kernel writes blanks, newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// Table is the mount table of this process's mount namespace.
func Table() ([]Info, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	defer f.Close()
	return parseInfo(f)
}

// At returns the topmost mount on dir (an absolute path without symbolic links), and whether there is one.
func At(dir string) (Info, bool, error) {
	table, err := Table()
	if err != nil {
		return Info{}, false, err
	}
	for i := len(table) - 1; i >= 0; i-- {
		if table[i].Dir == dir {
			return table[i], true, nil
		}
	}
	return Info{}, false, nil
}

// IsOurs reports whether the mount is one of this program's type.
func (m Info) IsOurs() bool { return m.Type == "fuse."+Type }
