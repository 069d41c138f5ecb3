/* SPDX-License-Identifier: Apache-2.0 */
/* Runs files through a fuzz target, where there is no libFuzzer: replay FILE... */
#include "fuzz.h"

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s FILE...\n", argv[0]);
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f || fseek(f, 0, SEEK_END)) {
            perror(argv[i]);
            return 2;
        }
        const long n = ftell(f);
        if (n < 0 || fseek(f, 0, SEEK_SET)) {
            perror(argv[i]);
            return 2;
        }
        uint8_t *data = take((size_t)n, 0);
        if (n && fread(data, (size_t)n, 1, f) != 1) {
            perror(argv[i]);
            return 2;
        }
        fclose(f);
        fprintf(stderr, "%s\n", argv[i]); /* before it runs: the last one named is the one that failed */
        LLVMFuzzerTestOneInput(data, (size_t)n);
        free(data);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
