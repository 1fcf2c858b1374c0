/* A stand-in for libcuda: it answers what Triton asks of the CUDA driver, and does nothing but count launches.
   Pointers, handles and enumerations are passed as plain words, so NVIDIA's headers are not needed. */

enum { MAX_THREADS_PER_BLOCK = 0 };                                  /* of a function */
enum { MAJOR = 75, MINOR = 76, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97 }; /* of a device */

static long launches;
long standin_launches(void) { return launches; }

int cuLaunchKernel(void) { launches++; return 0; }
int cuLaunchKernelEx(void) { launches++; return 0; }

/* Answers that matter. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case MAJOR: *value = 9; break;
    case MINOR: *value = 0; break;
    default: *value = 132; /* multiprocessors, and whatever else is asked */
    }
    return 0;
}
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return 0;
}
int cuGetErrorString(int error, const char **text) { *text = "stand-in"; return 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) { *count = 1; return 0; }
int cuPointerGetAttribute(void *data, int attribute, unsigned long long pointer) {
    *(unsigned long long *)data = pointer; /* the device pointer of a tensor is its address */
    return 0;
}
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }

/* Handles: anything but null. */
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetLimit(unsigned long *value, int limit) { *value = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)2; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)3; return 0; }

/* Success, and nothing else. */
int cuInit(void) { return 0; }
int cuCtxSetCurrent(void) { return 0; }
int cuCtxSetLimit(void) { return 0; }
int cuFuncSetAttribute(void) { return 0; }
int cuFuncSetCacheConfig(void) { return 0; }
int cuModuleUnload(void) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
