package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileNames are the paths of the job's files.
func fileNames(j job, prefix string) ([]cpath, error) {
	names := make([]cpath, j.Files)
	for i := range names {
		p, err := mkpath("%s/%s%06d.json", j.Dir, prefix, i)
		if err != nil {
			return nil, err
		}
		names[i] = p
	}
	return names, nil
}

// contents are the bytes of all the job's files in a row: different for each file and seed.
func contents(j job, n int) func(i int) []byte {
	all := randomBytes(j.Seed, n*int(j.Size))
	return func(i int) []byte { return all[i*int(j.Size) : (i+1)*int(j.Size)] }
}

// put opens, writes and closes one file.
func put(p cpath, flags int, data []byte, sync bool) error {
	fd, err := sysOpen(p, flags, 0o644)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := sysWrite(fd, data); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if sync {
		if err := sysFsync(fd); err != nil {
			return fmt.Errorf("fsync: %w", err)
		}
	}
	if err := sysClose(fd); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

const (
	openNew       = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_CLOEXEC
	openOverwrite = unix.O_WRONLY | unix.O_TRUNC | unix.O_CLOEXEC
	openAppend    = unix.O_WRONLY | unix.O_APPEND | unix.O_CLOEXEC
	openRead      = unix.O_RDONLY | unix.O_CLOEXEC
)

// makeFiles makes the job's files, before the clock starts.
func makeFiles(j job) ([]cpath, error) {
	names, err := fileNames(j, "f")
	if err != nil {
		return nil, err
	}
	data := contents(j, j.Files)
	for i, p := range names {
		if err := put(p, openNew, data(i), false); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func prepareCreate(j job) (prepared, error) {
	names, err := fileNames(j, "f")
	if err != nil {
		return prepared{}, err
	}
	data := contents(j, j.Files)
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(names), func(i int) error { return put(names[i], openNew, data(i), j.Sync) })
	}}, nil
}

// treeWidth is the number of files in each directory of a tree.
const treeWidth = 1000

// prepareCreateTree creates the files in as many directories as they need; making the directories is timed too.
func prepareCreateTree(j job) (prepared, error) {
	dirs := make([]cpath, (j.Files+treeWidth-1)/treeWidth)
	names := make([]cpath, j.Files)
	var err error
	for i := range dirs {
		if dirs[i], err = mkpath("%s/d%04d", j.Dir, i); err != nil {
			return prepared{}, err
		}
	}
	for i := range names {
		if names[i], err = mkpath("%s/d%04d/f%06d.json", j.Dir, i/treeWidth, i); err != nil {
			return prepared{}, err
		}
	}
	data := contents(j, j.Files)
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(names), func(i int) error {
			if i%treeWidth == 0 {
				if err := sysMkdir(dirs[i/treeWidth]); err != nil {
					return fmt.Errorf("mkdir: %w", err)
				}
			}
			return put(names[i], openNew, data(i), j.Sync)
		})
	}}, nil
}

func prepareStat(j job) (prepared, error) {
	names, err := makeFiles(j)
	if err != nil {
		return prepared{}, err
	}
	var st unix.Stat_t
	one := func(i int) error {
		if err := sysLstat(unix.AT_FDCWD, names[i%len(names)], &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		if st.Size != j.Size {
			return fmt.Errorf("a file of %d bytes has size %d", j.Size, st.Size)
		}
		return nil
	}
	return prepared{
		warm: func() error { return each(len(names), one) },
		run:  func(m *measured) error { return repeat(m, j, j.Ops, one) },
	}, nil
}

func each(n int, one func(i int) error) error {
	for i := range n {
		if err := one(i); err != nil {
			return err
		}
	}
	return nil
}

func prepareRead(j job) (prepared, error) {
	names, err := makeFiles(j)
	if err != nil {
		return prepared{}, err
	}
	data := contents(j, j.Files)
	buf := make([]byte, j.Size+1)
	one := func(i int) error {
		i %= len(names)
		fd, err := sysOpen(names[i], openRead, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		n, err := sysRead(fd, buf)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if want := data(i); n != len(want) || buf[0] != want[0] || buf[n-1] != want[n-1] {
			return fmt.Errorf("file %d has wrong content", i)
		}
		return sysClose(fd)
	}
	return prepared{
		warm: func() error { return each(len(names), one) },
		run:  func(m *measured) error { return repeat(m, j, j.Ops, one) },
	}, nil
}

// prepareList lists the directory once for each of j.Ops; the files must be there already. An operation is an entry listed.
func prepareList(j job) (prepared, error) {
	dir, err := mkpath("%s", j.Dir)
	if err != nil {
		return prepared{}, err
	}
	buf := make([]byte, 32<<10)
	one := func(int) error {
		fd, err := sysOpen(dir, openRead|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("open the directory: %w", err)
		}
		n, err := listDir(fd, buf)
		if err != nil {
			return err
		}
		if n != j.Files {
			return fmt.Errorf("the directory has %d entries, %d were listed", j.Files, n)
		}
		return sysClose(fd)
	}
	p := prepared{run: func(m *measured) error {
		if err := repeat(m, j, j.Ops, one); err != nil {
			return err
		}
		m.Ops *= j.Files
		return nil
	}}
	if j.Warm {
		p.warm = func() error { return one(0) }
	}
	return p, nil
}

func prepareOverwrite(j job) (prepared, error) {
	names, err := makeFiles(j)
	if err != nil {
		return prepared{}, err
	}
	j.Seed ^= 1 << 40
	data := contents(j, j.Files)
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(names), func(i int) error { return put(names[i], openOverwrite, data(i), j.Sync) })
	}}, nil
}

func prepareReplace(j job) (prepared, error) {
	names, err := makeFiles(j)
	if err != nil {
		return prepared{}, err
	}
	temps, err := fileNames(j, ".tmp")
	if err != nil {
		return prepared{}, err
	}
	j.Seed ^= 1 << 40
	data := contents(j, j.Files)
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(names), func(i int) error {
			if err := put(temps[i], openNew, data(i), j.Sync); err != nil {
				return err
			}
			return sysRename(temps[i], names[i])
		})
	}}, nil
}

// prepareMove moves each file from one directory to another.
func prepareMove(j job) (prepared, error) {
	from, to := j, j
	from.Dir, to.Dir = j.Dir+"/todo", j.Dir+"/done"
	for _, d := range []string{from.Dir, to.Dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return prepared{}, err
		}
	}
	old, err := makeFiles(from)
	if err != nil {
		return prepared{}, err
	}
	moved, err := fileNames(to, "f")
	if err != nil {
		return prepared{}, err
	}
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(old), func(i int) error { return sysRename(old[i], moved[i]) })
	}}, nil
}

func prepareUnlink(j job) (prepared, error) {
	names, err := makeFiles(j)
	if err != nil {
		return prepared{}, err
	}
	return prepared{run: func(m *measured) error {
		return repeat(m, j, len(names), func(i int) error { return sysUnlink(names[i]) })
	}}, nil
}
