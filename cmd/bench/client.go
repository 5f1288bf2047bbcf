package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// phaseLimit is how long preparing or running one job may take before the filesystem is taken to hang.
const phaseLimit = 15 * time.Minute

// client is one worker process.
type client struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer
}

// startClient starts a worker process for j; it prepares the job at once.
func startClient(ctx context.Context, j job) (*client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	c := &client{cmd: exec.CommandContext(ctx, self, "worker")}
	// No signal of Go's scheduler may interrupt a system call that is being timed.
	c.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	c.cmd.Stderr = &c.stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	if err := json.NewEncoder(c.in).Encode(j); err != nil {
		return nil, errors.Join(fmt.Errorf("give a worker its job: %w", err), c.end())
	}
	return c, nil
}

// end waits for the process and returns what it had to complain about.
func (c *client) end() error {
	_ = c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("worker: %w: %s", err, strings.TrimSpace(c.stderr.String()))
	}
	return nil
}

// hear waits for a word of the worker.
func (c *client) hear(word string) error {
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("a worker ended early: %w", err)
	}
	if string(line) == word+"\n" {
		return nil
	}
	var m measured
	if err := json.Unmarshal(line, &m); err != nil || m.Err == "" {
		return fmt.Errorf("a worker said %q instead of %s", line, word)
	}
	return errors.New(m.Err)
}

func (c *client) say(word string) error {
	if _, err := fmt.Fprintln(c.in, word); err != nil {
		return fmt.Errorf("say %s to a worker: %w", word, err)
	}
	return nil
}

func (c *client) result() (measured, error) {
	var m measured
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return m, fmt.Errorf("a worker ended early: %w", err)
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("a worker's result: %w", err)
	}
	if m.Err != "" {
		return m, errors.New(m.Err)
	}
	return m, nil
}

// hooks are called between the steps of runJobs.
type hooks struct {
	prepared func() error // everything is prepared, nothing is warm
	warmed   func() error // caches are warm; the clock starts right after it
}

// runJobs runs all jobs at the same time, each in a process of its own. The result adds them up: from the first start to the last end.
func runJobs(ctx context.Context, jobs []job, h hooks) (total measured, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, phaseLimit, fmt.Errorf("%s took more than %s; the filesystem may hang", jobs[0].Op, phaseLimit))
	defer cancel()
	var clients []*client
	defer func() {
		if err != nil {
			err = errors.Join(context.Cause(ctx), err)
			cancel()
		}
		for _, c := range clients {
			if e := c.end(); err == nil {
				err = e
			}
		}
	}()
	for _, j := range jobs {
		c, err := startClient(ctx, j)
		if err != nil {
			return total, err
		}
		clients = append(clients, c)
	}
	for _, step := range []struct {
		hear string
		then func() error
		say  string
	}{{workerReady, h.prepared, workerWarm}, {workerWarmed, h.warmed, workerGo}} {
		for _, c := range clients {
			if err := c.hear(step.hear); err != nil {
				return total, err
			}
		}
		if step.then != nil {
			if err := step.then(); err != nil {
				return total, err
			}
		}
		for _, c := range clients {
			if err := c.say(step.say); err != nil {
				return total, err
			}
		}
	}
	for i, c := range clients {
		m, err := c.result()
		if err != nil {
			return total, err
		}
		if i == 0 {
			total = m
			continue
		}
		total = addUp(total, m)
	}
	return total, nil
}

// addUp joins what two workers did at the same time.
func addUp(a, b measured) measured {
	return measured{
		Ops: a.Ops + b.Ops, Bytes: a.Bytes + b.Bytes,
		StartNS: min(a.StartNS, b.StartNS), EndNS: max(a.EndNS, b.EndNS), CloseNS: max(a.CloseNS, b.CloseNS),
	}
}

// opsRate is in operations a second, until the last operation returned.
func (m measured) opsRate() float64 { return float64(m.Ops) / seconds(m.EndNS-m.StartNS) }

// closeRate is in operations a second, until the close behind the last one returned.
func (m measured) closeRate() float64 { return float64(m.Ops) / seconds(m.CloseNS-m.StartNS) }

// byteRate is in MiB a second.
func (m measured) byteRate() float64 {
	return float64(m.Bytes) / (1 << 20) / seconds(m.CloseNS-m.StartNS)
}

// seconds is never 0: a clock that did not move counts as one nanosecond.
func seconds(ns int64) float64 { return float64(max(ns, 1)) / 1e9 }
