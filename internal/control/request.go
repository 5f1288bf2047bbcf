package control

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The resources of the protocol.
const (
	routeStatus  = "/v1/status"
	routeStat    = "/v1/stat"
	routeList    = "/v1/list"
	routeLog     = "/v1/log"
	routeContent = "/v1/content"
	routeNode    = "/v1/node"
	routeUnmount = "/v1/unmount"
	routeCall    = "/v1/call"
)

// request is a request of the protocol, validated. Fields that the operation does not use are zero.
type request struct {
	method    string // GET, PUT, DELETE or POST
	route     string
	path      string
	at        Selector
	mode      uint32
	who       Caller // agent and program only: who calls is the kernel's word
	recursive bool
	lazy      bool
	history   historyRequest
	audit     auditRequest
}

// parameters returns the names of the parameters that an operation knows; nil when there is no such operation.
func parameters(method, route string) []string {
	switch method + " " + route {
	case "GET " + routeStatus:
		return []string{}
	case "GET " + routeStat, "GET " + routeList, "GET " + routeLog:
		return []string{"path"}
	case "GET " + routeContent:
		return []string{"path", "number", "time", "seq"}
	case "PUT " + routeContent:
		return []string{"path", "mode", "agent", "program"}
	case "DELETE " + routeNode:
		return []string{"path", "recursive", "agent", "program"}
	case "POST " + routeUnmount:
		return []string{"lazy"}
	case "POST " + routeCall:
		return []string{"name", "agent", "program"}
	}
	if known := auditParameters(method, route); known != nil {
		return known
	}
	return historyParameters(method, route)
}

// parseRequest validates the target of a request; its size was bounded by the server's header limit.
func parseRequest(r *http.Request) (request, error) {
	q := request{method: r.Method, route: r.URL.Path}
	known := parameters(q.method, q.route)
	if known == nil {
		return request{}, fmt.Errorf("%w: there is no %.16q %.64q", ErrRequest, r.Method, r.URL.Path)
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return request{}, fmt.Errorf("%w: the parameters do not parse", ErrRequest)
	}
	seen := 0
	for _, name := range known {
		v, ok := values[name]
		if !ok {
			continue
		}
		if len(v) != 1 {
			return request{}, fmt.Errorf("%w: parameter %q is given %d times", ErrRequest, name, len(v))
		}
		if err := q.set(name, v[0]); err != nil {
			return request{}, err
		}
		seen++
	}
	if seen != len(values) {
		return request{}, fmt.Errorf("%w: unknown parameters; are the command and the daemon of the same release?", ErrRequest)
	}
	if len(known) > 0 && known[0] == "path" && q.path == "" {
		return request{}, fmt.Errorf("%w: the path is missing", ErrRequest)
	}
	if q.at != (Selector{Number: q.at.Number}) && q.at != (Selector{Time: q.at.Time}) && q.at != (Selector{Seq: q.at.Seq}) {
		return request{}, fmt.Errorf("%w: more than one of number, time and seq", ErrRequest)
	}
	return q, q.complete()
}

func (q *request) set(name, v string) (err error) {
	if ok, err := q.history.set(name, v); ok {
		return err
	}
	if ok, err := q.audit.set(name, v); ok {
		return err
	}
	switch name {
	case "path":
		q.path, err = CleanPath(v)
		return err
	case "number":
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || n == 0 {
			return fmt.Errorf("%w: number is not a version number", ErrRequest)
		}
		q.at.Number = int(n)
	case "time":
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil || t.Year() < 1970 || t.Year() > 2261 {
			return fmt.Errorf("%w: time is not in RFC 3339, or lies outside 1970 to 2261", ErrRequest)
		}
		q.at.Time = t
	case "seq":
		n, err := strconv.ParseUint(v, 10, 62)
		if err != nil || n == 0 {
			return fmt.Errorf("%w: seq is not the number of a journal record", ErrRequest)
		}
		q.at.Seq = n
	case "mode":
		m, err := strconv.ParseUint(v, 8, 32)
		if err != nil || m&^0o7777 != 0 {
			return fmt.Errorf("%w: mode is not a permission in octal digits", ErrRequest)
		}
		q.mode = uint32(m)
	case "agent":
		q.who.Agent, err = actorName(v)
	case "program":
		q.who.Program, err = actorName(v)
	case "recursive":
		q.recursive, err = parseFlag(v)
	case "lazy":
		q.lazy, err = parseFlag(v)
	}
	return err
}

func parseFlag(v string) (bool, error) {
	switch v {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%w: a flag is 0 or 1", ErrRequest)
}

// actorName accepts printable UTF-8 only: the name goes into logs that people read on terminals.
func actorName(v string) (string, error) {
	if len(v) > MaxActor || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%w: the name of the agent or program is longer than %d bytes or not printable", ErrRequest, MaxActor)
	}
	return v, nil
}

// target returns the request's URI, the inverse of parseRequest.
func (q request) target() string {
	v := url.Values{}
	for _, name := range parameters(q.method, q.route) {
		switch name {
		case "path":
			v.Set(name, q.path)
		case "number":
			if q.at.Number != 0 {
				v.Set(name, strconv.Itoa(q.at.Number))
			}
		case "time":
			if !q.at.Time.IsZero() {
				v.Set(name, q.at.Time.UTC().Format(time.RFC3339Nano))
			}
		case "seq":
			if q.at.Seq != 0 {
				v.Set(name, strconv.FormatUint(q.at.Seq, 10))
			}
		case "mode":
			v.Set(name, strconv.FormatUint(uint64(q.mode), 8))
		case "agent":
			v.Set(name, q.who.Agent)
		case "program":
			v.Set(name, q.who.Program)
		case "recursive":
			v.Set(name, formatFlag(q.recursive))
		case "lazy":
			v.Set(name, formatFlag(q.lazy))
		default:
			q.setQuery(v, name)
		}
	}
	if len(v) == 0 {
		return q.route
	}
	return q.route + "?" + v.Encode()
}

func formatFlag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}
