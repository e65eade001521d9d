/*
 * n-body forces, all pairs.
 */
#include <cuda.h>
#include <cuda_runtime.h>
#include <device_launch_parameters.h>
#include <cmath>

#define BLOCK_SIZE 64
#define SOFTENING 1e-9f

typedef struct { float x, y, z, vx, vy, vz; } Body;

typedef float real;
using vec3 = float3;

static __device__ __inline__ vec3 operator+(vec3 a, vec3 b) { return make_float3(a.x + b.x, a.y + b.y, a.z + b.z); }

static __device__ vec3 force(float4 me, float4 other, vec3 f) {
    vec3 d = make_float3(other.x - me.x, other.y - me.y, other.z - me.z);
    real dist2 = d.x * d.x + d.y * d.y + d.z * d.z + SOFTENING;
    real inv = rsqrtf(dist2);
    real inv3 = inv * inv * inv;
    return f + make_float3(d.x * inv3, d.y * inv3, d.z * inv3);
}

__global__
void bodyForce(float4 *p, float4 *v, float dt, int n) {
    int i = blockDim.x * blockIdx.x + threadIdx.x;
    __shared__ float4 tile[BLOCK_SIZE];
    vec3 F = {0.0f, 0.0f, 0.0f};
    float4 me = i < n ? p[i] : make_float4(0, 0, 0, 0);
    for (int t = 0; t < (n + BLOCK_SIZE - 1) / BLOCK_SIZE; t++) {
        int j = t * BLOCK_SIZE + threadIdx.x;
        tile[threadIdx.x] = j < n ? p[j] : make_float4(1e6f, 1e6f, 1e6f, 0);
        __syncthreads();
        #pragma unroll 4
        for (int k = 0; k < BLOCK_SIZE; k++) F = force(me, tile[k], F);
        __syncthreads();
    }
    if (i < n) {
        v[i].x += dt * F.x; v[i].y += dt * F.y; v[i].z += dt * F.z;
    }
}

__global__ void integrate(Body *bodies, float dt, int n)
{
    int i = blockDim.x * blockIdx.x + threadIdx.x;
    if (i >= n) return;
    Body *b = &bodies[i];
    b->x += b->vx * dt;
    b->y += b->vy * dt;
    b->z += b->vz * dt;
}
