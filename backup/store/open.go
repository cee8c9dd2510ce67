package store

import (
	"context"
	"fmt"
	"net/url"
	"strings"
)

// Open opens the store that a URL names: file:///DIR, or s3://BUCKET/PREFIX with the options endpoint, region, path-style, profile, ca, storage-class,
// sse and sse-key behind a question mark.
func Open(ctx context.Context, text string) (Store, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", text, err)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || u.Path == "" || u.RawQuery != "" {
			return nil, fmt.Errorf("store %q: want file:///DIRECTORY", text)
		}
		return OpenFile(u.Path)
	case "s3":
		opt, err := s3Options(u)
		if err != nil {
			return nil, fmt.Errorf("store %q: %w", text, err)
		}
		return OpenS3(ctx, opt)
	}
	return nil, fmt.Errorf("store %q: want s3://BUCKET/PREFIX or file:///DIRECTORY", text)
}

func s3Options(u *url.URL) (S3Options, error) {
	opt := S3Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	if u.User != nil {
		return opt, fmt.Errorf("keys don't belong into the URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile")
	}
	if opt.Prefix != "" {
		if err := CheckName(opt.Prefix); err != nil {
			return opt, err
		}
		opt.Prefix += "/"
	}
	fields := map[string]*string{
		"endpoint": &opt.Endpoint, "region": &opt.Region, "profile": &opt.Profile, "ca": &opt.CA, "storage-class": &opt.StorageClass, "sse": &opt.SSE, "sse-key": &opt.SSEKey,
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return opt, err
	}
	for key, values := range query {
		value := values[len(values)-1]
		switch field := fields[key]; {
		case field != nil:
			*field = value
		case key == "path-style" && (value == "true" || value == "false"):
			opt.PathStyle = value == "true"
		default:
			return opt, fmt.Errorf("unknown option %s=%s: known are endpoint, region, path-style=true|false, profile, ca, storage-class, sse, sse-key", key, value)
		}
	}
	if _, given := query["path-style"]; !given && opt.Endpoint != "" {
		opt.PathStyle = true // what nearly all services that aren't AWS want
	}
	return opt, nil
}
