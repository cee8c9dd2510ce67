package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// gossipKey reads the key that was given as text or in a file.
func gossipKey(text, file string) ([]byte, error) {
	if text != "" && file != "" {
		return nil, errors.New("--gossip-key and --gossip-key-file: give one of them")
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--gossip-key-file: %w", err)
		}
		text = strings.TrimSpace(string(b))
		if text == "" {
			return nil, fmt.Errorf("--gossip-key-file %s is empty", file)
		}
	}
	if text == "" {
		return nil, nil
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if b, err := decode(text); err == nil && (len(b) == 16 || len(b) == 24 || len(b) == 32) {
			return b, nil
		}
	}
	return nil, errors.New("the gossip key is not 16, 24 or 32 bytes in hex or base64; openssl rand -base64 32 makes one")
}
