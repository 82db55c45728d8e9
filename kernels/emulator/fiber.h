// A fiber: a function with a stack of its own, which gives up the processor when it likes.
//
// A CUDA thread waits for others in the middle of a function.  With a stack for each thread this
// needs neither threads of the operating system nor luck: `switch_stacks` pushes the registers that
// a called function must keep, stores the stack pointer, loads another, and pops.
#pragma once
#include <cstddef>
#include <cstdint>
#include <sys/mman.h>

// Leave the running stack, whose pointer goes to *from, for the one whose pointer is `to`.
extern "C" void emulator_switch_stacks(void** from, void* to);

#if defined(__x86_64__)
constexpr int KEPT = 6;                 // words that the function pushes: rbp, rbx, r12 to r15,
constexpr int RETURN = 6;               // and where it goes on, below them
#elif defined(__aarch64__)
constexpr int KEPT = 20;                // x19 to x30, d8 to d15
constexpr int RETURN = 11;              // x30
#else
#error "the emulator switches stacks on x86-64 and on arm64 only"
#endif

struct Stack {
    static constexpr size_t BYTES = 64 << 10;
    unsigned char* memory = nullptr;
    void* pointer = nullptr;

    // Make the next switch to this stack call `function`, which must never return.
    void start(void (*function)()) {
        if (!memory)
            memory = static_cast<unsigned char*>(
                mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0));
        // A called function finds the stack 16-byte aligned before its return address was pushed.
        void** top = reinterpret_cast<void**>(memory + BYTES - 64);
        void** words = top - RETURN - (RETURN == KEPT ? 2 : KEPT - RETURN);
        for (int i = 0; i < KEPT; i++) words[i] = nullptr;
        words[RETURN] = reinterpret_cast<void*>(function);
        pointer = words;
    }
    bool holds(uintptr_t address) const {
        return address - reinterpret_cast<uintptr_t>(memory) < BYTES;
    }
};
