package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

const appendLine = 200 // bytes

// makeLarge writes one file of j.Size bytes from its stream.
func makeLarge(p cpath, j job, sum hash.Hash) error {
	fd, err := sysOpen(p, openNew, 0o644)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := writeStream(fd, newStream(j.Seed, j.Text, j.Size), j.Size, sum); err != nil {
		return err
	}
	return sysClose(fd)
}

// writeStream writes the first size bytes of s to fd, and to sum when it is not nil.
func writeStream(fd int, s *stream, size int64, sum hash.Hash) error {
	for off := int64(0); off < size; {
		b := s.chunk(off, int(min(chunkSize, size-off)))
		if err := sysWrite(fd, b); err != nil {
			return fmt.Errorf("write at byte %d: %w", off, err)
		}
		if sum != nil {
			sum.Write(b)
		}
		off += int64(len(b))
	}
	return nil
}

func largeName(j job) (cpath, error) { return mkpath("%s/large.bin", j.Dir) }

// prepareAppend appends lines to one log, which is opened and closed for each.
func prepareAppend(j job) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	if err := makeLarge(p, j, nil); err != nil {
		return prepared{}, err
	}
	lines := randomBytes(j.Seed^1<<40, j.Ops*appendLine)
	return prepared{run: func(m *measured) error {
		err := repeat(m, j, j.Ops, func(i int) error { return put(p, openAppend, lines[i*appendLine:(i+1)*appendLine], j.Sync) })
		if err != nil {
			return err
		}
		return checkSize(p, j.Size+int64(m.Ops)*appendLine)
	}}, nil
}

// keptOpen times calls on a file that is open already, and then the close.
func keptOpen(j job, p cpath, flags int, one func(fd, i int) error) prepared {
	return prepared{run: func(m *measured) error {
		fd, err := sysOpen(p, flags, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		m.StartNS = now()
		if err := repeat(m, j, j.Ops, func(i int) error { return one(fd, i) }); err != nil {
			return err
		}
		if err := sysClose(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		m.CloseNS = now()
		return nil
	}}
}

// prepareAppendOpen appends lines to one log that stays open.
func prepareAppendOpen(j job) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	if err := makeLarge(p, j, nil); err != nil {
		return prepared{}, err
	}
	lines := randomBytes(j.Seed^1<<40, min(j.Ops, 1<<14)*appendLine)
	count := len(lines) / appendLine
	k := keptOpen(j, p, openAppend, func(fd, i int) error {
		i %= count
		return sysWrite(fd, lines[i*appendLine:(i+1)*appendLine])
	})
	return prepared{run: func(m *measured) error {
		if err := k.run(m); err != nil {
			return err
		}
		return checkSize(p, j.Size+int64(m.Ops)*appendLine)
	}}, nil
}

// checkSize is done after the clock has stopped: a lost append must not count as a fast one.
func checkSize(p cpath, want int64) error {
	var st unix.Stat_t
	if err := sysLstat(unix.AT_FDCWD, p, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Size != want {
		return fmt.Errorf("the file has %d bytes and should have %d", st.Size, want)
	}
	return nil
}

// prepareWrite4K overwrites pages at random places of one file.
func prepareWrite4K(j job) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	if err := makeLarge(p, j, nil); err != nil {
		return prepared{}, err
	}
	pages := randomBytes(j.Seed^1<<40, j.Ops*pageSize)
	r := rand.New(rand.NewPCG(j.Seed, 2))
	at := make([]int64, j.Ops)
	for i := range at {
		at[i] = r.Int64N(j.Size/pageSize) * pageSize
	}
	return keptOpen(j, p, unix.O_RDWR|unix.O_CLOEXEC, func(fd, i int) error {
		return sysPwrite(fd, pages[i*pageSize:(i+1)*pageSize], at[i])
	}), nil
}

// prepareWriteLarge writes one file from its stream; the time ends when close returns.
func prepareWriteLarge(j job) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	s := newStream(j.Seed, j.Text, j.Size)
	return prepared{run: func(m *measured) error {
		fd, err := sysOpen(p, openNew, 0o644)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		if err := writeStream(fd, s, j.Size, nil); err != nil {
			return err
		}
		if err := sysClose(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		m.EndNS = now()
		m.CloseNS, m.Ops, m.Bytes = m.EndNS, 1, j.Size
		return nil
	}}, nil
}

// prepareReadLarge reads the file that write-large made with the same seed.
func prepareReadLarge(j job) (prepared, error) { return readLarge(j, nil) }

func readLarge(j job, sum hash.Hash) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	s := newStream(j.Seed, j.Text, 0)
	buf := randomBytes(1, chunkSize) // touched, so that no page fault is timed
	return prepared{run: func(m *measured) error {
		fd, err := sysOpen(p, openRead, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		for off := int64(0); ; {
			n, err := sysRead(fd, buf)
			if err != nil {
				return fmt.Errorf("read at byte %d: %w", off, err)
			}
			if n == 0 {
				m.Bytes = off
				break
			}
			if err := s.check(buf[:n], off); err != nil {
				return err
			}
			if sum != nil {
				sum.Write(buf[:n])
			}
			off += int64(n)
		}
		if m.Bytes != j.Size {
			return fmt.Errorf("a file of %d bytes gave %d", j.Size, m.Bytes)
		}
		if err := sysClose(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		m.EndNS = now()
		m.CloseNS, m.Ops = m.EndNS, 1
		if sum != nil {
			m.Sum = hex.EncodeToString(sum.Sum(nil))
		}
		return nil
	}}, nil
}

// prepareHashWrite writes a large file and computes the SHA-256 of what it wrote.
func prepareHashWrite(j job) (prepared, error) {
	p, err := largeName(j)
	if err != nil {
		return prepared{}, err
	}
	sum := sha256.New()
	return prepared{run: func(m *measured) error {
		if err := makeLarge(p, j, sum); err != nil {
			return err
		}
		m.EndNS = now()
		m.CloseNS, m.Ops, m.Bytes = m.EndNS, 1, j.Size
		m.Sum = hex.EncodeToString(sum.Sum(nil))
		return nil
	}}, nil
}

// prepareHashRead reads a large file and computes the SHA-256 of what it got.
func prepareHashRead(j job) (prepared, error) { return readLarge(j, sha256.New()) }
