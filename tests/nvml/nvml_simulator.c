/* An NVML whose GPUs are described in a text file, for programs that load libnvidia-ml.so.1.
 *
 * NVML_SIMULATOR names the file. It is read again whenever it was replaced, so that GPUs fill up, fail or come back
 * while a program runs. One word and its value per line; what a GPU has follows its `gpu` line, and `mig`, `process`
 * and `link` may come several times:
 *
 *   driver 570.124.06        cuda 12080          init <nvml error>      hang <seconds every call takes>
 *   crash <1: the next call ends the process>                 says <what every call prints to the standard output>
 *   gpu
 *     uuid GPU-...           name NVIDIA H100    pci 00000000:1B:00.0   capability 9 0
 *     memory <total MiB> <used MiB> <reserved MiB>                      load <percent>    temperature <celsius>
 *     power <mW> <limit mW>  clock <MHz> <max MHz>
 *     ecc <enabled> <uncorrected errors>         retired <pages>        remap_failed <0|1>
 *     process <pid> <MiB> <c|g>                  mig <number> <total MiB> <used MiB> <slices>
 *     link <other gpu's number> <nvlinks>        near <other gpu's number> <topology level>
 *     xid <number> <count: an event whenever it grows>
 *     slowdown <mask of reasons for lower clocks>
 *     lost 1                 unsupported <call without nvmlDeviceGet, or all>
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MIB (1024ULL * 1024ULL)
enum { MOST_GPUS = 32, MOST_MIGS = 7, MOST_PROCESSES = 64, MOST_LINKS = 18, MOST_REFUSED = 16 };
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, LOST = 15 };
typedef enum { A_GPU = 0x6770, A_MIG = 0x6d69 } Kind;

typedef struct { Kind kind; int gpu, number, slices; unsigned long long total, used; } Mig;
typedef struct { unsigned pid; unsigned long long used; char type; } Process;
typedef struct {
  Kind kind;
  int index, lost, major, minor, load, temperature, power, limit, clock, clock_max, ecc, retired, remap_failed, slowdown;
  unsigned long long total, used, reserved, ecc_errors;
  char uuid[96], name[96], pci[32], refused[MOST_REFUSED][64];
  int refusals, processes, migs;
  Process process[MOST_PROCESSES];
  Mig mig[MOST_MIGS];
  int links[MOST_GPUS], near[MOST_GPUS];
  long long xid, xid_count;
} Gpu;

static Gpu gpus[MOST_GPUS];
static int count, cuda, init_error, hang, crash, started;
static long long xids_told[MOST_GPUS];
static char driver[80], says[80];
static struct timespec read_at;
static ino_t read_inode;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void read_gpu_line(Gpu *gpu, const char *word, const char *rest) {
  int a = 0, b = 0, c = 0;
  long long x = 0, y = 0, z = 0;
  char letter = 'c';
  if (!strcmp(word, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", rest);
  else if (!strcmp(word, "name")) snprintf(gpu->name, sizeof gpu->name, "%s", rest);
  else if (!strcmp(word, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%s", rest);
  else if (!strcmp(word, "capability")) sscanf(rest, "%d %d", &gpu->major, &gpu->minor);
  else if (!strcmp(word, "memory")) {
    sscanf(rest, "%lld %lld %lld", &x, &y, &z);
    gpu->total = x * MIB; gpu->used = y * MIB; gpu->reserved = z * MIB;
  }
  else if (!strcmp(word, "load")) gpu->load = atoi(rest);
  else if (!strcmp(word, "temperature")) gpu->temperature = atoi(rest);
  else if (!strcmp(word, "power")) sscanf(rest, "%d %d", &gpu->power, &gpu->limit);
  else if (!strcmp(word, "clock")) sscanf(rest, "%d %d", &gpu->clock, &gpu->clock_max);
  else if (!strcmp(word, "ecc")) { sscanf(rest, "%d %lld", &gpu->ecc, &x); gpu->ecc_errors = x; }
  else if (!strcmp(word, "retired")) gpu->retired = atoi(rest);
  else if (!strcmp(word, "remap_failed")) gpu->remap_failed = atoi(rest);
  else if (!strcmp(word, "slowdown")) gpu->slowdown = atoi(rest);
  else if (!strcmp(word, "xid")) sscanf(rest, "%lld %lld", &gpu->xid, &gpu->xid_count);
  else if (!strcmp(word, "lost")) gpu->lost = atoi(rest);
  else if (!strcmp(word, "link")) { sscanf(rest, "%d %d", &a, &b); if (a >= 0 && a < MOST_GPUS) gpu->links[a] = b; }
  else if (!strcmp(word, "near")) { sscanf(rest, "%d %d", &a, &b); if (a >= 0 && a < MOST_GPUS) gpu->near[a] = b; }
  else if (!strcmp(word, "unsupported") && gpu->refusals < MOST_REFUSED)
    snprintf(gpu->refused[gpu->refusals++], 64, "%s", rest);
  else if (!strcmp(word, "process") && gpu->processes < MOST_PROCESSES) {
    sscanf(rest, "%d %lld %c", &a, &x, &letter);
    gpu->process[gpu->processes++] = (Process){(unsigned)a, x < 0 ? ~0ULL : x * MIB, letter};
  } else if (!strcmp(word, "mig") && gpu->migs < MOST_MIGS) {
    sscanf(rest, "%d %lld %lld %d", &b, &x, &y, &c);
    gpu->mig[gpu->migs++] = (Mig){A_MIG, gpu->index, b, c, x * MIB, y * MIB};
  }
}

static void read_file(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file) return;
  char line[512], word[32];
  count = 0; cuda = 0; init_error = 0; hang = 0; crash = 0; driver[0] = says[0] = 0;
  while (fgets(line, sizeof line, file)) {
    int length = 0;
    line[strcspn(line, "\r\n")] = 0;
    if (sscanf(line, " %31s %n", word, &length) < 1) continue;
    const char *rest = line + length;
    if (!strcmp(word, "driver")) snprintf(driver, sizeof driver, "%s", rest);
    else if (!strcmp(word, "cuda")) cuda = atoi(rest);
    else if (!strcmp(word, "init")) init_error = atoi(rest);
    else if (!strcmp(word, "hang")) hang = atoi(rest);
    else if (!strcmp(word, "crash")) crash = atoi(rest);
    else if (!strcmp(word, "says")) snprintf(says, sizeof says, "%s", rest);
    else if (!strcmp(word, "gpu") && count < MOST_GPUS) {
      Gpu *gpu = &gpus[count];
      memset(gpu, 0, sizeof *gpu);
      gpu->kind = A_GPU; gpu->index = count++;
    } else if (count) read_gpu_line(&gpus[count - 1], word, rest);
  }
  fclose(file);
}

static void refresh(void) {
  const char *path = getenv("NVML_SIMULATOR");
  struct stat now;
  pthread_mutex_lock(&turn);
  if (path && !stat(path, &now)) {
    int same = now.st_ino == read_inode && now.st_mtim.tv_sec == read_at.tv_sec && now.st_mtim.tv_nsec == read_at.tv_nsec;
    if (!same) { read_at = now.st_mtim; read_inode = now.st_ino; read_file(path); }
  }
  pthread_mutex_unlock(&turn);
  if (says[0]) { puts(says); fflush(stdout); }
  if (crash) raise(SIGSEGV);
  if (hang) sleep((unsigned)hang);
}

static int refused(const Gpu *gpu, const char *call) {
  for (int i = 0; i < gpu->refusals; i++)
    if (!strcmp(gpu->refused[i], "all") || !strcmp(gpu->refused[i], call)) return 1;
  return 0;
}

/* What every question about a device begins with: `gpu` is the device, or the GPU that a MIG device is part of. */
static int enter(void *device, const char *call, Gpu **gpu, Mig **mig) {
  if (!started) return UNINITIALIZED;
  refresh();
  if (!device) return INVALID;
  *mig = *(Kind *)device == A_MIG ? device : NULL;
  *gpu = *mig ? &gpus[(*mig)->gpu] : device;
  if ((*gpu)->index >= count || (*gpu)->lost) return LOST;
  return refused(*gpu, call) ? NOT_SUPPORTED : SUCCESS;
}
#define CALL(name, ...) API int nvmlDeviceGet##name(void *device, __VA_ARGS__)
#define ENTER(name) Gpu *gpu; Mig *mig; int entered = enter(device, name, &gpu, &mig); (void)mig; if (entered) return entered
#define ANSWER(name, where, what) ENTER(name); *where = (what); return SUCCESS

static int give(char *to, unsigned size, const char *text) {
  if (strlen(text) + 1 > size) return TOO_SMALL;
  strcpy(to, text);
  return SUCCESS;
}

API int nvmlInitWithFlags(unsigned flags) { (void)flags; refresh(); if (init_error) return init_error; started++; return SUCCESS; }
API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlShutdown(void) { if (!started) return UNINITIALIZED; started--; return SUCCESS; }
API const char *nvmlErrorString(int error) {
  switch (error) {
    case LOST: return "GPU is lost";
    case NOT_SUPPORTED: return "Not Supported";
    case 9: return "Driver Not Loaded";
    case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error";
    default: return "Simulated error";
  }
}
API int nvmlSystemGetDriverVersion(char *to, unsigned size) { refresh(); return started ? give(to, size, driver) : UNINITIALIZED; }
API int nvmlSystemGetNVMLVersion(char *to, unsigned size) { return nvmlSystemGetDriverVersion(to, size); }
API int nvmlSystemGetCudaDriverVersion_v2(int *to) { refresh(); *to = cuda; return SUCCESS; }
API int nvmlSystemGetCudaDriverVersion(int *to) { return nvmlSystemGetCudaDriverVersion_v2(to); }
API int nvmlSystemGetProcessName(unsigned pid, char *to, unsigned size) { (void)pid; (void)to; (void)size; return NOT_FOUND; }

API int nvmlDeviceGetCount_v2(unsigned *to) { refresh(); if (!started) return UNINITIALIZED; *to = (unsigned)count; return SUCCESS; }
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) {
  refresh();
  if (!started) return UNINITIALIZED;
  if (index >= (unsigned)count) return INVALID;
  *to = &gpus[index];
  return gpus[index].lost ? LOST : SUCCESS;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, void **to) {
  refresh();
  for (int i = 0; i < count; i++) if (!strcmp(gpus[i].uuid, uuid)) { *to = &gpus[i]; return SUCCESS; }
  return NOT_FOUND;
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **to) {
  refresh();
  for (int i = 0; i < count; i++) if (!strcasecmp(gpus[i].pci, pci)) { *to = &gpus[i]; return SUCCESS; }
  return NOT_FOUND;
}
/* A device knows its number even when it is lost: it is in the driver's own table. */
API int nvmlDeviceGetIndex(void *device, unsigned *to) { *to = (unsigned)((Gpu *)device)->index; return SUCCESS; }
CALL(MinorNumber, unsigned *to) { ANSWER("MinorNumber", to, (unsigned)gpu->index); }
CALL(UUID, char *to, unsigned size) {
  ENTER("UUID");
  char text[96];
  if (mig) snprintf(text, sizeof text, "MIG-%02d-%.80s", mig->number, gpu->uuid);
  return give(to, size, mig ? text : gpu->uuid);
}
CALL(Name, char *to, unsigned size) {
  ENTER("Name");
  char text[160];
  if (mig) snprintf(text, sizeof text, "%s MIG %dg.%llugb", gpu->name, mig->slices, (mig->total / MIB + 512) / 1024);
  return give(to, size, mig ? text : gpu->name);
}
CALL(Serial, char *to, unsigned size) { ENTER("Serial"); return give(to, size, gpu->uuid + (strlen(gpu->uuid) > 12 ? strlen(gpu->uuid) - 12 : 0)); }
CALL(Brand, int *to) { ANSWER("Brand", to, 14); }
CALL(Architecture, unsigned *to) { ANSWER("Architecture", to, gpu->major >= 10 ? 10u : gpu->major == 9 ? 9u : 7u); }
CALL(CudaComputeCapability, int *major, int *minor) { ENTER("CudaComputeCapability"); *major = gpu->major; *minor = gpu->minor; return SUCCESS; }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } Pci;
static void locate(const Gpu *gpu, Pci *to) {
  memset(to, 0, sizeof *to);
  sscanf(gpu->pci, "%x:%x:%x", &to->domain, &to->bus, &to->device);
  to->id = 0x233010DE;
  snprintf(to->address, sizeof to->address, "%s", gpu->pci);
  snprintf(to->legacy, sizeof to->legacy, "%04X:%02X:%02X.0", to->domain & 0xffff, to->bus & 0xff, to->device & 0xff);
}
CALL(PciInfo_v3, Pci *to) { ENTER("PciInfo"); locate(gpu, to); return SUCCESS; }

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
CALL(MemoryInfo, Memory *to) {
  ENTER("MemoryInfo");
  if (mig) *to = (Memory){mig->total, mig->total - mig->used, mig->used};
  else *to = (Memory){gpu->total, gpu->total - gpu->used - gpu->reserved, gpu->used + gpu->reserved};
  return SUCCESS;
}
CALL(MemoryInfo_v2, Memory2 *to) {
  ENTER("MemoryInfo_v2");
  if (mig) *to = (Memory2){to->version, mig->total, 0, mig->total - mig->used, mig->used};
  else *to = (Memory2){to->version, gpu->total, gpu->reserved, gpu->total - gpu->used - gpu->reserved, gpu->used};
  return SUCCESS;
}
CALL(BAR1MemoryInfo, Memory *to) { ENTER("BAR1MemoryInfo"); *to = (Memory){256 * MIB, 255 * MIB, MIB}; return SUCCESS; }
typedef struct { unsigned gpu, memory; } Load;
CALL(UtilizationRates, Load *to) {
  ENTER("UtilizationRates");
  if (mig || gpu->migs) return NOT_SUPPORTED;
  *to = (Load){(unsigned)gpu->load, (unsigned)gpu->load / 2};
  return SUCCESS;
}
CALL(Temperature, int sensor, unsigned *to) { (void)sensor; ANSWER("Temperature", to, (unsigned)gpu->temperature); }
CALL(TemperatureThreshold, int which, unsigned *to) { (void)which; ANSWER("TemperatureThreshold", to, 90); }
CALL(PowerUsage, unsigned *to) { ANSWER("PowerUsage", to, (unsigned)gpu->power); }
CALL(EnforcedPowerLimit, unsigned *to) { ANSWER("EnforcedPowerLimit", to, (unsigned)gpu->limit); }
CALL(PowerManagementLimit, unsigned *to) { ANSWER("PowerManagementLimit", to, (unsigned)gpu->limit); }
CALL(TotalEnergyConsumption, unsigned long long *to) { ANSWER("TotalEnergyConsumption", to, 1000000ULL); }
CALL(ClockInfo, int which, unsigned *to) { (void)which; ANSWER("ClockInfo", to, (unsigned)gpu->clock); }
CALL(MaxClockInfo, int which, unsigned *to) { (void)which; ANSWER("MaxClockInfo", to, (unsigned)gpu->clock_max); }
CALL(CurrentClocksEventReasons, unsigned long long *to) { ANSWER("EventReasons", to, (unsigned long long)gpu->slowdown); }
CALL(CurrentClocksThrottleReasons, unsigned long long *to) { ANSWER("ThrottleReasons", to, (unsigned long long)gpu->slowdown); }
CALL(FanSpeed, unsigned *to) { ENTER("FanSpeed"); *to = 0; return NOT_SUPPORTED; }
CALL(PerformanceState, int *to) { ANSWER("PerformanceState", to, 0); }
CALL(PersistenceMode, int *to) { ANSWER("PersistenceMode", to, 1); }
CALL(ComputeMode, int *to) { ANSWER("ComputeMode", to, 0); }
CALL(DriverModel, int *now, int *later) { ENTER("DriverModel"); (void)now; (void)later; return NOT_SUPPORTED; }
CALL(DisplayActive, int *to) { ANSWER("DisplayActive", to, 0); }
CALL(DisplayMode, int *to) { ANSWER("DisplayMode", to, 0); }
CALL(EccMode, int *now, int *later) { ENTER("EccMode"); *now = *later = gpu->ecc; return SUCCESS; }
CALL(TotalEccErrors, int type, int counter, unsigned long long *to) {
  (void)counter;
  ENTER("TotalEccErrors");
  if (!gpu->ecc) return NOT_SUPPORTED;
  *to = type == 1 ? gpu->ecc_errors : 0;
  return SUCCESS;
}
CALL(RetiredPages, int cause, unsigned *number, unsigned long long *addresses) {
  ENTER("RetiredPages");
  unsigned have = cause == 1 ? (unsigned)gpu->retired : 0;
  if (*number < have || (have && !addresses)) { *number = have; return TOO_SMALL; }
  for (unsigned i = 0; i < have; i++) addresses[i] = i;
  *number = have;
  return SUCCESS;
}
CALL(RemappedRows, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed) {
  ENTER("RemappedRows");
  *correctable = *uncorrectable = *pending = 0;
  *failed = (unsigned)gpu->remap_failed;
  return SUCCESS;
}

CALL(MigMode, unsigned *now, unsigned *later) {
  ENTER("MigMode");
  if (gpu->major < 8 || (gpu->major == 8 && gpu->minor)) return NOT_SUPPORTED;
  *now = *later = gpu->migs > 0;
  return SUCCESS;
}
CALL(MaxMigDeviceCount, unsigned *to) { ANSWER("MaxMigDeviceCount", to, gpu->migs ? MOST_MIGS : 0u); }
CALL(MigDeviceHandleByIndex, unsigned index, void **to) {
  ENTER("MigDeviceHandleByIndex");
  for (int i = 0; i < gpu->migs; i++) if (gpu->mig[i].number == (int)index) { *to = &gpu->mig[i]; return SUCCESS; }
  return NOT_FOUND;
}
API int nvmlDeviceIsMigDeviceHandle(void *device, unsigned *to) { *to = *(Kind *)device == A_MIG; return SUCCESS; }
CALL(GpuInstanceId, unsigned *to) { ENTER("GpuInstanceId"); if (!mig) return NOT_SUPPORTED; *to = (unsigned)mig->number; return SUCCESS; }
CALL(ComputeInstanceId, unsigned *to) { ENTER("ComputeInstanceId"); if (!mig) return NOT_SUPPORTED; *to = 0; return SUCCESS; }
CALL(DeviceHandleFromMigDeviceHandle, void **to) { ANSWER("DeviceHandleFromMigDeviceHandle", to, gpu); }

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } ProcessInfo;
static int list(const Gpu *gpu, char type, unsigned *number, ProcessInfo *to) {
  unsigned have = 0;
  for (int i = 0; i < gpu->processes; i++) have += gpu->process[i].type == type;
  if (*number < have || (have && !to)) { *number = have; return TOO_SMALL; }
  *number = 0;
  for (int i = 0; i < gpu->processes; i++)
    if (gpu->process[i].type == type)
      to[(*number)++] = (ProcessInfo){gpu->process[i].pid, gpu->process[i].used, ~0u, ~0u};
  return SUCCESS;
}
CALL(ComputeRunningProcesses_v3, unsigned *number, ProcessInfo *to) { ENTER("ComputeRunningProcesses"); return list(gpu, 'c', number, to); }
CALL(GraphicsRunningProcesses_v3, unsigned *number, ProcessInfo *to) { ENTER("GraphicsRunningProcesses"); return list(gpu, 'g', number, to); }
CALL(MPSComputeRunningProcesses_v3, unsigned *number, ProcessInfo *to) { ENTER("MPSComputeRunningProcesses"); return list(gpu, 'm', number, to); }

CALL(ProcessUtilization, void *to, unsigned *number, unsigned long long since) {
  ENTER("ProcessUtilization");
  (void)to; (void)since;
  *number = 0;
  return NOT_FOUND;
}

static const Gpu *linked(const Gpu *gpu, unsigned link) {
  for (int other = 0; other < count; other++) {
    if (link < (unsigned)gpu->links[other]) return &gpus[other];
    link -= (unsigned)gpu->links[other];
  }
  return NULL;
}
CALL(NvLinkState, unsigned link, int *to) {
  ENTER("NvLinkState");
  if (link >= MOST_LINKS) return INVALID;
  *to = linked(gpu, link) != NULL;
  return *to || linked(gpu, 0) ? SUCCESS : NOT_SUPPORTED;
}
CALL(NvLinkRemoteDeviceType, unsigned link, int *to) {
  ENTER("NvLinkRemoteDeviceType");
  *to = linked(gpu, link) == gpu ? 2 : 0; /* 2: a switch */
  return linked(gpu, link) ? SUCCESS : NOT_SUPPORTED;
}
CALL(NvLinkRemotePciInfo_v2, unsigned link, Pci *to) {
  ENTER("NvLinkRemotePciInfo");
  const Gpu *other = linked(gpu, link);
  if (!other) return NOT_SUPPORTED;
  locate(other, to);
  if (other == gpu) snprintf(to->address, sizeof to->address, "00000000:F0:00.0"); /* a switch */
  return SUCCESS;
}
CALL(TopologyCommonAncestor, void *other, int *to) { ANSWER("TopologyCommonAncestor", to, gpu->near[((Gpu *)other)->index]); }
static int all_to_all(const Gpu *gpu) { return gpu->links[gpu->index]; }
CALL(P2PStatus, void *other, int which, int *to) {
  ENTER("P2PStatus");
  int by_link = gpu->links[((Gpu *)other)->index] || (all_to_all(gpu) && all_to_all(other));
  *to = which == 2 && !by_link ? 5 : 0;
  return SUCCESS;
}

typedef struct { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;
API int nvmlEventSetCreate(void **to) { *to = calloc(1, 8); return SUCCESS; }
API int nvmlEventSetFree(void *set) { free(set); return SUCCESS; }
API int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
  (void)types; (void)set;
  Gpu *gpu = device;
  xids_told[gpu->index] = gpu->xid_count;
  return refused(gpu, "Events") ? NOT_SUPPORTED : SUCCESS;
}
API int nvmlEventSetWait_v2(void *set, Event *to, unsigned milliseconds) {
  (void)set;
  for (unsigned waited = 0;; waited += 10) {
    refresh();
    for (int i = 0; i < count; i++)
      if (gpus[i].xid_count > xids_told[i]) {
        xids_told[i]++;
        *to = (Event){&gpus[i], 8, (unsigned long long)gpus[i].xid, ~0u, ~0u};
        return SUCCESS;
      }
    if (waited >= milliseconds) return TIMEOUT;
    usleep(10000);
  }
}
