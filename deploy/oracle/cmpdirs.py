#!/usr/bin/env python3
"""Compare two cold data directories of one cluster page by page, masked as PostgreSQL's *_mask functions do.

usage: cmpdirs.py REPLAYED FINAL

REPLAYED is what a replay of the cluster's WAL made, FINAL the directory of the cleanly stopped server. The access method
of a page is told by its special area. Free space maps and unlogged relations are left out: WAL does not hold them.
Prints the first few differences of each kind and a count of every outcome; exits with 1 when a difference is no tolerated one.
"""
import collections
import os
import re
import struct
import sys

BLOCK = 8192
ZERO = bytes(BLOCK)
HEADER = 24  # bytes of a page header
RELATION = re.compile(r'^(base|global|pg_tblspc)/.*?(\d+)(_(fsm|vm|init))?(\.\d+)?$')
SHOWN = 6  # differences of each kind that are printed


def u16(page, offset):
    return struct.unpack_from('<H', page, offset)[0]


def kind(page):
    """The access method that a page belongs to."""
    special = u16(page, 16)
    size = BLOCK - special
    last = u16(page, BLOCK - 2) if size >= 2 else 0
    if special == BLOCK:
        return 'heap'
    if size == 16:
        named = {0xFF80: 'hash', 0xFF81: 'gist', 0xFF82: 'spgist'}
        if last in named:
            return named[last]
        return 'btree' if last <= 0xFF7F else '?'
    if size == 8:
        if last in (0xF091, 0xF092, 0xF093):
            return 'brin'
        if last == 0xFF82:
            return 'spgist'
        if last == 0xFF83:
            return 'bloom'
        if struct.unpack_from('<I', page, BLOCK - 8)[0] == 0x1717:
            return 'sequence'
        return 'gin'
    return '?'


def items(page, lower):
    """Number, offset, flags and length of each line pointer."""
    for i in range(max(0, (lower - HEADER) // 4)):
        word = struct.unpack_from('<I', page, HEADER + 4 * i)[0]
        yield i, word & 0x7FFF, (word >> 15) & 3, word >> 17


def mask_line_pointer_flags(page, lower):
    for i, offset, flags, length in items(page, lower):
        if flags:
            struct.pack_into('<I', page, HEADER + 4 * i, offset | (length << 17))


def mask_unused_space(page, method, lower, upper, special):
    standard = method not in ('spgist', 'gin', 'brin')
    regular_brin = method == 'brin' and u16(page, BLOCK - 2) != 0xF092 and lower > HEADER
    if standard or regular_brin or method == 'spgist' and lower >= HEADER or method == 'gin' and lower > HEADER:
        if HEADER <= lower <= upper <= special:
            page[lower:upper] = bytes(upper - lower)


def mask_heap(page, lower):
    for _, offset, flags, length in items(page, lower):
        if flags == 1 and offset + 23 <= BLOCK:
            infomask = u16(page, offset + 20)
            speculative = u16(page, offset + 16) == 0xFFFE
            frozen = infomask & 0x300 == 0x300
            struct.pack_into('<H', page, offset + 20, infomask & ~(0x0C00 if frozen else 0xFFF0))
            page[offset + 8:offset + 12] = bytes(4)  # the command id
            if speculative:
                page[offset + 12:offset + 18] = bytes(6)
        if length and length % 8:
            page[offset + length:offset + length + 8 - length % 8] = bytes(8 - length % 8)


def mask_btree(page, lower, special):
    flags = u16(page, special + 12)
    if flags & 1:
        mask_line_pointer_flags(page, lower)
    struct.pack_into('<HH', page, special + 12, flags & ~(64 | 32), 0)
    if flags & 8:
        page[HEADER + 28:HEADER + 44] = bytes(16)  # the metapage's vacuum statistics


def mask_hash(page, lower, special):
    flags = u16(page, special + 12)
    if flags & 15 == 0:
        page[HEADER:] = bytes(BLOCK - HEADER)
        page[12:16] = bytes(4)
    elif flags & 15 in (1, 2):
        mask_line_pointer_flags(page, lower)
        struct.pack_into('<H', page, special + 12, flags & ~128)


def mask_gist(page, lower, special):
    flags = u16(page, special + 12)
    page[special:special + 8] = bytes(8)
    if flags & 1:
        mask_line_pointer_flags(page, lower)
    # 4 is F_TUPLES_DELETED: the redo of DELETE sets it, the primary does not.
    struct.pack_into('<H', page, special + 12, (flags | 8) & ~(16 | 4))


def mask(original):
    page = bytearray(original)
    method = kind(page)
    page[0:10] = bytes(10)  # LSN and checksum
    lower, upper, special = struct.unpack_from('<HHH', page, 12)
    if method not in ('sequence', 'bloom'):
        page[20:24] = bytes(4)  # pd_prune_xid
        page[10] &= 0xF8  # hints and all-visible
    mask_unused_space(page, method, lower, upper, special)
    if method == 'heap' and lower > HEADER:
        mask_heap(page, lower)
    elif method == 'btree':
        mask_btree(page, lower, special)
    elif method == 'hash':
        mask_hash(page, lower, special)
    elif method == 'gist':
        mask_gist(page, lower, special)
    elif method == 'gin' and u16(page, special + 6) & 4:
        page[HEADER:] = bytes(BLOCK - HEADER)
        page[12:16] = bytes(4)
    elif method == 'brin':
        struct.pack_into('<H', page, BLOCK - 4, u16(page, BLOCK - 4) & ~1)
    return bytes(page), method


def tolerate(a, b, methods, original, block, first_segment):
    """What WAL never holds exactly, left out of both masked pages: the outcome's name, or None."""
    if methods == ('sequence', 'sequence'):
        # last_value, log_cnt and is_called: 32 values are logged ahead
        at = u16(original, 16) - 48 + 24
        if a[:at] + a[at + 17:] == b[:at] + b[at + 17:]:
            return 'tolerated-sequence-value'
    if methods[0] == 'spgist' and block == 0 and first_segment:
        lower = u16(original, 12)
        if a[:28] == b[:28] and a[lower:] == b[lower:]:
            return 'tolerated-spgist-last-used-pages'
    return None


def files(directory):
    found = {}
    for root, _, names in os.walk(directory, followlinks=True):
        for name in names:
            found[os.path.normpath(os.path.join(os.path.relpath(root, directory), name))] = os.path.join(root, name)
    return found


def read(path):
    if path is None:
        return b''
    with open(path, 'rb') as f:
        return f.read()


class Comparison:
    def __init__(self, replayed, final):
        self.replayed, self.final = files(replayed), files(final)
        self.counts = collections.Counter()
        self.differences = 0

    def difference(self, what, where):
        self.counts[what] += 1
        self.differences += 1
        if self.counts[what] <= SHOWN:
            print(what, where)

    def run(self):
        for name in sorted(set(self.replayed) | set(self.final)):
            match = RELATION.match(name)
            if match:
                self.relation(name, match)
            elif name.startswith(('pg_xact', 'pg_multixact', 'pg_commit_ts', 'pg_twophase')) or \
                    name.endswith(('pg_filenode.map', 'PG_VERSION')):
                self.plain(name)

    def plain(self, name):
        """A file that must be equal byte by byte."""
        if name not in self.replayed or name not in self.final:
            self.difference('file-only-in-' + ('final' if name not in self.replayed else 'replayed'), name)
            return
        a, b = read(self.replayed[name]), read(self.final[name])
        if a == b:
            self.counts['file-equal'] += 1
        else:
            bytes_differ = sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b))
            self.difference('FILE-DIFFERS', f'{name} in {bytes_differ} bytes')

    def relation(self, name, match):
        if re.search(r'/t\d+_\d+', name):
            return  # of a temporary relation
        fork = match.group(4) or 'main'
        base = re.sub(r'(_(fsm|vm|init))?(\.\d+)?$', '', name)
        if fork != 'init' and (base + '_init' in self.replayed or base + '_init' in self.final):
            self.counts['unlogged-skipped'] += 1
            return
        if fork == 'fsm':
            self.counts['fsm-skipped'] += 1
            return
        a, b = read(self.replayed.get(name)), read(self.final.get(name))
        if (name not in self.replayed or name not in self.final) and (fork != 'vm' or (a or b)[HEADER:].strip(b'\0')):
            where = 'final' if name not in self.replayed else 'replayed'
            self.difference(f'RELATION-ONLY-IN-{where}', f'{name} {max(len(a), len(b))} bytes')
        for offset in range(0, max(len(a), len(b)), BLOCK):
            self.page(name, fork, offset // BLOCK, a[offset:offset + BLOCK], b[offset:offset + BLOCK], not match.group(5))

    def page(self, name, fork, block, a, b, first_segment):
        where = f'{name} block {block}'
        if a == b:
            self.counts['page-identical'] += 1
        elif (a or ZERO) == ZERO and (b or ZERO) == ZERO:
            self.counts['page-zero-or-absent'] += 1
        elif fork == 'vm' and not (a or b)[HEADER:].strip(b'\0'):
            self.counts['vm-page-empty-or-absent'] += 1
        elif a in (b'', ZERO):
            self.difference('PAGE-MISSING-IN-replayed', f'{where} {kind(b)}')
        elif b in (b'', ZERO):
            self.difference('PAGE-MISSING-IN-final', f'{where} {kind(a)}')
        elif fork == 'vm':
            self.visibility(where, a, b)
        else:
            self.masked(where, block, a, b, first_segment)

    def visibility(self, where, a, b):
        """The replay may lack bits, which is safe; one too many would hide rows."""
        if any(x & ~y for x, y in zip(a[HEADER:], b[HEADER:])):
            self.difference('VM-BITS-EXTRA-IN-replayed', where)
        elif a[HEADER:] != b[HEADER:]:
            self.counts['vm-bits-missing-in-replayed'] += 1
        else:
            self.counts['vm-equal-but-header'] += 1

    def masked(self, where, block, a, b, first_segment):
        (masked_a, method_a), (masked_b, method_b) = mask(a), mask(b)
        if masked_a == masked_b:
            self.counts['page-equal-masked-' + method_a] += 1
            return
        tolerated = tolerate(masked_a, masked_b, (method_a, method_b), a, block, first_segment)
        if tolerated:
            self.counts[tolerated] += 1
            return
        at = [i for i in range(BLOCK) if masked_a[i] != masked_b[i]]
        self.difference('PAGE-DIFFERS-' + method_a, f'{where} in {len(at)} bytes, first {at[0]}, last {at[-1]}')


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    comparison = Comparison(sys.argv[1], sys.argv[2])
    comparison.run()
    for name, count in sorted(comparison.counts.items()):
        print(name, count)
    sys.exit(1 if comparison.differences else 0)


main()
