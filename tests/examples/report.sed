s/0x[0-9a-f]*/ADDRESS/
s/[0-9]*\.[0-9] s/N s/
s/; stack [0-9]* of [0-9]* KiB//
